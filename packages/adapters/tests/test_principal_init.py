"""PiSSA: stored matrix plus adapter are the matrix, and the factors are those of PEFT's initialization."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    AdaLora,
    AdapterError,
    AdapterScale,
    PrincipalStart,
    adapted,
    attach_adalora,
    attach_lora,
    uniform_ranks,
)
from peft import LoraConfig, get_peft_model

SCALE = AdapterScale(3.0, "constant")


def split_model(model, start: PrincipalStart, names: list[str]) -> dict[str, torch.Tensor]:
    """Store the remainders of plain linear layers without rounding; return the original weights."""
    before = {}
    for name in names:
        weight = model.get_submodule(name).weight
        before[name] = weight.detach().clone()
        weight.data = start.split(name, weight.detach(), lambda weight_OI: weight_OI)
    return before


def test_remainder_and_adapter_are_those_of_peft(make, blocks) -> None:
    names, ranks = blocks["llama"], uniform_ranks(blocks["llama"], 4)
    peft = get_peft_model(
        make("llama"), LoraConfig(r=4, lora_alpha=12, target_modules=names, init_lora_weights="pissa")
    )
    model, start = make("llama"), PrincipalStart(ranks)
    before = split_model(model, start, names)
    model = attach_lora(model, ranks, scale=SCALE)
    start.write(model)
    of_peft = dict(adapted(peft))
    for name, layer in adapted(model):
        product_OI = layer.get_delta_weight("default")
        assert torch.allclose(product_OI, of_peft[name].get_delta_weight("default"), atol=1e-5)
        assert torch.allclose(layer.base_layer.weight, of_peft[name].base_layer.weight, atol=1e-5)
        assert torch.allclose(layer.base_layer.weight + product_OI, before[name], atol=1e-6)
        ours, theirs = (one.lora_A["default"].weight.norm(dim=1) for one in (layer, of_peft[name]))
        assert torch.allclose(ours, theirs, rtol=1e-3)


def test_remainder_is_as_small_as_the_left_out_singular_values(make, blocks) -> None:
    name = blocks["llama"][0]
    weight_OI = make("llama").get_submodule(name).weight.detach()
    rest_OI = PrincipalStart({name: 5}).split(name, weight_OI, lambda weight_OI: weight_OI)
    left_out = torch.linalg.svdvals(weight_OI)[5:]
    assert float(rest_OI.norm()) == pytest.approx(float(left_out.norm()), rel=1e-4)


def test_a_matrix_of_rank_0_stays_as_it_is() -> None:
    weight_OI = torch.randn(4, 4)
    assert PrincipalStart({"a": 0}).split("a", weight_OI, lambda weight_OI: weight_OI) is weight_OI


def test_adapters_that_lose_ranks_are_refused(make, blocks) -> None:
    names, start = blocks["llama"], PrincipalStart(uniform_ranks(blocks["llama"], 6))
    model = make("llama")
    split_model(model, start, names)
    model = attach_adalora(model, names, AdaLora(6, 2), total_steps=50)
    with pytest.raises(AdapterError, match="cannot lose ranks"):
        start.write(model)
