"""Dropout of adapters: W x + s B A dropout(x) while training, nothing in evaluation, never lost silently."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    AdaLora,
    AdapterError,
    AdapterScale,
    adapted,
    attach_adalora,
    attach_frozen,
    attach_learned_steps,
    attach_lora,
    fuse,
    set_dropout,
    uniform_ranks,
)
from torch.nn import functional as F

SCALE = AdapterScale(2.0, "constant")


def attach(make, blocks, name: str, kind: str = "lora"):
    if kind == "adalora":
        return attach_adalora(make(name), blocks[name], AdaLora(6, 4), total_steps=40, scale=SCALE)
    return attach_lora(make(name), uniform_ranks(blocks[name], 4), scale=SCALE)


def randomize(model) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_adapter_of_a_training_layer_sees_inputs_with_dropout(make, blocks, name: str) -> None:
    model = attach(make, blocks, name)
    randomize(model)
    set_dropout(model, 0.25)
    _, layer = adapted(model)[0]
    layer.train()
    x_BI = torch.randn(5, layer.lora_A["default"].weight.shape[1])
    torch.manual_seed(3)
    found = layer(x_BI)
    torch.manual_seed(3)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.get_base_layer()(x_BI) + 2.0 * F.dropout(x_BI, 0.25) @ down.T @ up.T
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_dropout_changes_training_and_not_evaluation(make, blocks, ids, kind: str) -> None:
    model = attach(make, blocks, "llama", kind)
    randomize(model)
    before = model.eval()(input_ids=ids).logits
    set_dropout(model, 0.5)
    assert torch.equal(model.eval()(input_ids=ids).logits, before)
    first, second = (model.train()(input_ids=ids).logits for _ in range(2))
    assert not torch.equal(first, second)
    assert model.peft_config["default"].lora_dropout == 0.5
    set_dropout(model, 0.0)
    assert torch.equal(model.train()(input_ids=ids).logits, before)


def test_fused_models_keep_the_dropout(make, blocks, ids) -> None:
    model = attach(make, blocks, "llama")
    randomize(model)
    set_dropout(model, 0.5)
    fuse(model)
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_adapters_without_dropout_are_refused(make, blocks) -> None:
    steps = attach_learned_steps(make("llama"), uniform_ranks(blocks["llama"], 4), bits=4, group=32)
    with pytest.raises(AdapterError, match=r"LearnedStepLinear.* computes without dropout; leave out"):
        set_dropout(steps, 0.1)
    with pytest.raises(AdapterError, match="no matrix has an adapter"):
        set_dropout(attach_frozen(make("llama")), 0.1)
    with pytest.raises(AdapterError, match=r"at least 0 and below 1, got 1\.5"):
        set_dropout(attach(make, blocks, "llama"), 1.5)
