"""QA-LoRA: the update is constant within groups, and its file is plain LoRA of the same function."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    AdapterError,
    AdapterScale,
    PooledRanks,
    adapted,
    attach_pooled,
    fuse,
    read_adapter,
    uniform_ranks,
)
from peft import PeftModel
from safetensors.torch import load_file

GROUP = 8


def attach(make, blocks, name: str = "llama"):
    model = attach_pooled(
        make(name), uniform_ranks(blocks[name], 4), GROUP, scale=AdapterScale(3.0, "constant")
    )
    with torch.no_grad():
        for number, (_, layer) in enumerate(adapted(model)):
            source = torch.Generator().manual_seed(number)
            up_OR = layer.lora_B["default"].weight
            up_OR.copy_(torch.randn(up_OR.shape, generator=source) * 0.1)
    return model


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_update_of_a_weight_is_the_product_of_its_group(make, blocks, name: str) -> None:
    for _, layer in adapted(attach(make, blocks, name)):
        down_RG, up_OR = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        x_NI = torch.eye(layer.in_features)
        update_OI = (layer(x_NI) - layer.base_layer(x_NI)).T
        expected_OI = 3.0 * (up_OR @ down_RG).repeat_interleave(GROUP, dim=1)
        assert torch.allclose(update_OI, expected_OI, atol=1e-5)


def test_stock_peft_loads_the_file_and_computes_the_same(make, blocks, ids, tmp_path) -> None:
    model = attach(make, blocks)
    hook = PooledRanks(model)
    hook.save(tmp_path)
    with hook.as_stored():
        logits = model(input_ids=ids).logits
    stock = PeftModel.from_pretrained(make("llama"), str(tmp_path))
    assert torch.allclose(stock(input_ids=ids).logits, logits, atol=1e-5)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() * 2 for tensor in tensors.values()) == hook.stored_bytes()
    part = read_adapter(tmp_path).parts[blocks["llama"][0]]
    grouped_OGW = part.product().unflatten(1, (-1, GROUP))
    assert torch.allclose(grouped_OGW, grouped_OGW[..., :1].expand_as(grouped_OGW))


def test_fewer_numbers_train_than_in_lora(make, blocks) -> None:
    for _, layer in adapted(attach(make, blocks)):
        assert layer.lora_A["default"].weight.shape == (4, layer.in_features // GROUP)


def test_fused_layers_leave_the_adapters_alone_and_name_them(make, blocks, ids) -> None:
    model, fused = attach(make, blocks), attach(make, blocks)
    assert sorted(fuse(fused)) == sorted(blocks["llama"])
    assert torch.allclose(fused(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def test_a_group_that_does_not_divide_the_inputs_is_refused(make, blocks) -> None:
    with pytest.raises(AdapterError, match="32 inputs, which are no multiple of the group 5"):
        attach_pooled(make("llama"), uniform_ranks(blocks["llama"], 4), 5)
