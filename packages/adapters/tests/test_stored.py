"""Adapters train in fp32 and are stored in bf16: bytes are counted so, and the stored form is evaluated."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    AdaLora,
    AdaLoraRanks,
    Dynamic,
    DynamicRanks,
    FixedRanks,
    LearnedScaleRanks,
    LearnedScales,
    ShrinkingRanks,
    adapted,
    adapter_bytes,
    adapter_memory,
    attach_adalora,
    attach_dynamic,
    attach_learned_scales,
    attach_lora,
    round_adapter,
)
from peft import PeftModel
from safetensors.torch import load_file

HEADS = {"bert": ["classifier"], "gpt2": [], "llama": []}
STEPS = 20


def lora(make, blocks, name):
    ranks = {matrix: 1 + n % 4 for n, matrix in enumerate(blocks[name])}
    model = attach_lora(make(name), ranks, heads=HEADS[name])
    return model, FixedRanks(model)


def adalora(make, blocks, name, hook=AdaLoraRanks, trained=STEPS):
    model = attach_adalora(
        make(name), blocks[name], AdaLora(6, 2, every=2), total_steps=STEPS, heads=HEADS[name]
    )
    return pruned(model, hook(model), trained)


def pruned(model, hook, trained):
    for step in range(1, trained + 1):
        filled(model, step)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        hook.after_step(step)
    return model, hook


def dynamic(make, blocks, name):
    schedule = Dynamic(6, 2, every=2)
    model = attach_dynamic(make(name), blocks[name], schedule, total_steps=STEPS, heads=HEADS[name])
    return pruned(model, DynamicRanks(model), STEPS)


def learned_scales(make, blocks, name):
    schedule = LearnedScales(6, 2, every=2)
    model = attach_learned_scales(make(name), blocks[name], schedule, total_steps=STEPS, heads=HEADS[name])
    return pruned(model, LearnedScaleRanks(model, schedule), STEPS)


def shrunk(make, blocks, name):
    return adalora(make, blocks, name, ShrinkingRanks)


def before_the_freeze(make, blocks, name):
    return adalora(make, blocks, name, ShrinkingRanks, trained=6)


KINDS = {
    "lora": lora,
    "adalora": adalora,
    "shrunk": shrunk,
    "before the freeze": before_the_freeze,
    "dynamic": dynamic,
    "learned scales": learned_scales,
}


def filled(model, seed):
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.2, generator=source)


def logits_of(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_the_file_has_the_counted_bytes_and_the_evaluated_numbers(
    make, blocks, ids, tmp_path, name: str, kind: str
) -> None:
    torch.manual_seed(0)
    model, hook = KINDS[kind](make, blocks, name)
    if kind == "lora":
        filled(model, 0)
    trained = {n: p.detach().clone() for n, p in model.named_parameters()}
    fp32 = logits_of(model, ids)
    with hook.as_stored():
        want = logits_of(model, ids)
        hook.save(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == hook.stored_bytes()
    stock = PeftModel.from_pretrained(make(name), tmp_path)
    assert torch.allclose(logits_of(stock, ids), want, atol=1e-5)
    assert (want - fp32).abs().max() > 1e-4  # rounding is not lost in the tolerance
    assert torch.equal(logits_of(model, ids), fp32)
    for parameter_name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[parameter_name]), parameter_name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_a_rank_takes_two_bytes_for_each_row_and_column_and_none_for_a_singular_value(
    make, blocks, name: str, kind: str
) -> None:
    model, hook = KINDS[kind](make, blocks, name)
    heads = sum(p.numel() for n, p in model.named_parameters() if ".modules_to_save." in n)
    sizes = {n: layer.in_features + layer.out_features for n, layer in adapted(model)}
    ranks = hook.ranks()
    assert hook.stored_bytes() == 2 * (heads + sum(ranks[n] * size for n, size in sizes.items()))


@pytest.mark.parametrize("name", HEADS)
def test_a_plan_of_full_ranks_takes_half_the_memory_in_its_file(make, blocks, name: str) -> None:
    model, hook = lora(make, blocks, name)
    assert hook.stored_bytes() == adapter_bytes(model) == adapter_memory(model) // 2


def test_rounded_parameters_are_bf16_values_in_fp32(make, blocks) -> None:
    model, _ = lora(make, blocks, "bert")
    filled(model, 0)
    round_adapter(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, parameter.bfloat16().float()), name


def test_an_error_inside_the_stored_form_restores_the_parameters(make, blocks, ids) -> None:
    model, hook = shrunk(make, blocks, "llama")
    before = logits_of(model, ids)
    with pytest.raises(RuntimeError, match="stop"), hook.as_stored():
        raise RuntimeError("stop")
    assert torch.equal(logits_of(model, ids), before)
    assert {layer.lora_E["default"].dtype for _, layer in adapted(model)} == {torch.float32}
