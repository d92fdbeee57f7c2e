"""PiSSA and CorDA: stored matrix plus adapter are the matrix, and the factors are those of PEFT."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    AdaLora,
    AdapterError,
    AdapterScale,
    CordaStart,
    PrincipalStart,
    adapted,
    attach_adalora,
    attach_lora,
    uniform_ranks,
)
from coarse_base import exact, split_model
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda

SCALE = AdapterScale(3.0, "constant")


def test_remainder_and_adapter_are_those_of_peft(make, blocks) -> None:
    names, ranks = blocks["llama"], uniform_ranks(blocks["llama"], 4)
    peft = get_peft_model(
        make("llama"), LoraConfig(r=4, lora_alpha=12, target_modules=names, init_lora_weights="pissa")
    )
    model, start = make("llama"), PrincipalStart(ranks)
    before = split_model(model, start, names, exact)
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


def test_a_matrix_that_was_not_split_is_refused(make, blocks) -> None:
    """A 16-bit matrix is stored whole, and its adapter would silently start as that of LoRA."""
    names, start = blocks["llama"], PrincipalStart(uniform_ranks(blocks["llama"], 4))
    model = make("llama")
    split_model(model, start, names[1:], exact)
    with pytest.raises(AdapterError, match=r"stays in 16 bits, .* give init=default"):
        start.write(attach_lora(model, uniform_ranks(names, 4)))


def test_adapters_that_lose_ranks_are_refused(make, blocks) -> None:
    names, start = blocks["llama"], PrincipalStart(uniform_ranks(blocks["llama"], 6))
    model = make("llama")
    split_model(model, start, names, exact)
    model = attach_adalora(model, names, AdaLora(6, 2), total_steps=50)
    with pytest.raises(AdapterError, match="cannot lose ranks"):
        start.write(model)


def input_moments(model, names: list[str], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """E[x xᵀ] of the inputs of each matrix."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, x: torch.Tensor) -> None:
        x_NI = x.detach().flatten(0, -2)
        found[name] = x_NI.T @ x_NI / len(x_NI)

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: keep(name, x[0]))
        for name in names
    ]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return found


def test_remainder_and_adapter_of_corda_are_those_of_peft(make, blocks, ids) -> None:
    """The scale of the second moments, which PEFT takes from a batch, moves one factor from A to B."""
    names, ranks, one = blocks["llama"], uniform_ranks(blocks["llama"], 4), ids[:1]
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=names, init_lora_weights="corda", corda_config=CordaConfig()
    )
    peft = make("llama")
    preprocess_corda(peft, config, lambda: peft(input_ids=one))
    of_peft = dict(adapted(get_peft_model(peft, config)))
    model = make("llama")
    start = CordaStart(ranks, input_moments(model, names, one).__getitem__)
    before = split_model(model, start, names, exact)
    model = attach_lora(model, ranks, scale=SCALE)
    start.write(model)
    for name, layer in adapted(model):
        product_OI = layer.get_delta_weight("default")
        assert torch.allclose(product_OI, of_peft[name].get_delta_weight("default"), atol=1e-4)
        assert torch.allclose(layer.base_layer.weight, of_peft[name].base_layer.weight, atol=1e-4)
        assert torch.allclose(layer.base_layer.weight + product_OI, before[name], atol=1e-6)
        down, up = (
            ours["default"].weight.norm(dim=dim) / theirs["default"].weight.norm(dim=dim)
            for ours, theirs, dim in (
                (layer.lora_A, of_peft[name].lora_A, 1),
                (layer.lora_B, of_peft[name].lora_B, 0),
            )
        )
        assert torch.allclose(down, down[0].expand(4), rtol=1e-2)
        assert torch.allclose(down * up, torch.ones(4), rtol=1e-2)


def test_corda_of_uncorrelated_inputs_of_one_scale_is_pissa() -> None:
    weight_OI = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    rests = [
        start.split("m", weight_OI, exact)
        for start in (PrincipalStart({"m": 5}), CordaStart({"m": 5}, lambda name: 7.0 * torch.eye(16)))
    ]
    assert torch.allclose(*rests, atol=1e-5)


def test_corda_refuses_moments_of_another_matrix() -> None:
    with pytest.raises(AdapterError, match="are for 3 inputs, the matrix has 4"):
        CordaStart({"m": 2}, lambda name: torch.eye(3)).split("m", torch.randn(4, 4), exact)
