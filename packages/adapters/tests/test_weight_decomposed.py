"""Weight-decomposed adapters compute m ∘ (W + s B A) / ‖W + s B A‖ as PEFT does; new ones change nothing."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    AdapterScale,
    ResidualStart,
    adapted,
    attach_lora,
    attach_weight_decomposed,
    fuse,
    uniform_ranks,
)
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F


def attach(make, blocks, name: str):
    ranks = uniform_ranks(blocks[name], 4)
    return attach_weight_decomposed(make(name), ranks, scale=AdapterScale(2.0, "constant"))


def randomize(model) -> None:
    """Set factors to seeded values, and change lengths; equal parameter names get equal values."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
                parameter.copy_(parameter + noise if "magnitude" in name else noise)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_new_adapter_changes_nothing(make, blocks, ids, name: str) -> None:
    model = attach(make, blocks, name)
    plain = make(name)(input_ids=ids).logits
    assert torch.allclose(model(input_ids=ids).logits, plain, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_new_adapter_on_a_16_bit_model_has_the_outputs_of_plain_lora(make, blocks, ids, name: str) -> None:
    """PEFT rounds the lengths to bf16, by up to 0.2 %, so a layer's rows would not start as the base's."""
    ranks, scale = uniform_ranks(blocks[name], 4), AdapterScale(2.0, "constant")
    plain, decomposed = (
        attach(make(name, torch.bfloat16), ranks, scale=scale).eval()
        for attach in (attach_lora, attach_weight_decomposed)
    )
    for _, layer in adapted(decomposed):
        weight_OI = layer.get_base_layer().weight.float()
        length_O = (weight_OI.T if layer.fan_in_fan_out else weight_OI).norm(dim=1)
        assert torch.allclose(layer.lora_magnitude_vector["default"].weight, length_O, rtol=1e-6)
    assert torch.equal(decomposed(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_layer_computes_the_formula(make, blocks) -> None:
    model = attach(make, blocks, "llama")
    randomize(model)
    for _, layer in adapted(model):
        moved_OI = layer.base_layer.weight + layer.get_delta_weight("default")
        length_O = layer.lora_magnitude_vector["default"].weight
        weight_OI = length_O[:, None] * moved_OI / moved_OI.norm(dim=1, keepdim=True)
        x_NI = torch.randn(5, layer.in_features)
        assert torch.allclose(layer(x_NI), F.linear(x_NI, weight_OI), atol=1e-5)


def test_outputs_and_gradients_equal_those_of_peft(make, blocks, ids) -> None:
    names = blocks["llama"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=names, use_dora=True)
    results = []
    for model in (attach(make, blocks, "llama"), get_peft_model(make("llama"), config)):
        randomize(model)
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        results.append((logits, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (ours, our_grads), (theirs, their_grads) = results
    assert torch.equal(ours, theirs)
    assert our_grads.keys() == their_grads.keys()
    assert all(torch.equal(our_grads[name], their_grads[name]) for name in our_grads)


def test_fused_layers_leave_the_adapters_alone_and_name_them(make, blocks, ids) -> None:
    plain, fused = attach(make, blocks, "llama"), attach(make, blocks, "llama")
    randomize(plain)
    randomize(fused)
    assert sorted(fuse(fused)) == sorted(blocks["llama"])
    assert torch.allclose(fused(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5)


def test_lengths_follow_an_initialization_from_the_residual(make, blocks) -> None:
    """Otherwise the layer would start with the lengths of the quantized rows."""
    names, ranks = blocks["llama"], uniform_ranks(blocks["llama"], 4)
    model, start = make("llama"), ResidualStart(uniform_ranks(blocks["llama"], 4))
    for name in names:
        weight = model.get_submodule(name).weight
        coarse = start.split(name, weight.detach(), lambda weight_OI: (weight_OI * 20).round() / 20)
        weight.data = (coarse * 20).round() / 20
    model = attach_weight_decomposed(model, ranks)
    start.write(model)
    for _, layer in adapted(model):
        moved_OI = layer.base_layer.weight + layer.get_delta_weight("default")
        x_NI = torch.randn(3, layer.in_features)
        assert torch.allclose(layer(x_NI), F.linear(x_NI, moved_OI), atol=1e-5)
