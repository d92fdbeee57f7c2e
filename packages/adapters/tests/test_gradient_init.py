"""LoRA-GA and GoRA: directions as in PEFT, remainders that add up to the matrix, and a step downhill."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bitrank_adapters import (
    AdaLora,
    AdapterError,
    AdapterScale,
    GradientStart,
    GradientStep,
    adapted,
    attach_adalora,
    attach_lora,
    uniform_ranks,
)
from coarse_base import effective_weight, exact, split_model
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraGAConfig, preprocess_loraga
from torch import Tensor

RANK = 8  # PEFT's approximate singular vectors are exact if 4 × the rank is the width of a matrix, 32
SCALE = AdapterScale(3.0, "constant")


def loss_of(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss


def gradients_of(model: Any, names: list[str], ids: Tensor) -> dict[str, Tensor]:
    weights = {name: model.get_submodule(name).weight.requires_grad_(True) for name in names}
    found = torch.autograd.grad(loss_of(model, ids), list(weights.values()))
    for weight in weights.values():
        weight.requires_grad_(False)
    return dict(zip(weights, found, strict=True))


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(rows.detach(), others.detach(), dim=1).abs()


def test_lora_ga_has_the_directions_of_peft(make, blocks, ids) -> None:
    """PEFT multiplies each column of B by the singular value of its direction, and A by no factor; the
    authors' code multiplies both by out^¼/√γ."""
    names, ranks = blocks["llama"], uniform_ranks(blocks["llama"], RANK)
    config = LoraConfig(
        r=RANK,
        lora_alpha=3 * RANK,
        target_modules=names,
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
    )
    peft = make("llama")
    preprocess_loraga(peft, config, lambda: loss_of(peft, ids).backward())
    of_peft = dict(adapted(get_peft_model(peft, config)))
    model = make("llama")
    gradients = gradients_of(model, names, ids)
    start = GradientStart(ranks, gradients.__getitem__, SCALE)
    split_model(model, start, names, exact)
    model = attach_lora(model, ranks, scale=SCALE)
    start.write(model)
    for name, layer in adapted(model):
        (down, up), (other_down, other_up) = (
            (one.lora_A["default"].weight, one.lora_B["default"].weight) for one in (layer, of_peft[name])
        )
        assert cosines(down, other_down).min() > 0.999
        assert cosines(up.T, other_up.T).min() > 0.999
        length = len(up) ** 0.25 / 16**0.5
        assert torch.allclose(down.norm(dim=1), torch.full((RANK,), length), rtol=1e-4)
        assert torch.allclose(up.norm(dim=0), torch.full((RANK,), length), rtol=1e-4)
        values_K = torch.linalg.svdvals(gradients[name])
        assert torch.allclose(other_up.norm(dim=0), length * values_K[RANK : 2 * RANK], rtol=1e-3)


@pytest.mark.parametrize("policy", ["alpha", "constant"])
def test_remainder_and_adapter_of_lora_ga_are_the_matrix(make, blocks, ids, policy: str) -> None:
    model, names = make("llama"), blocks["llama"]
    ranks = {name: 2 + number % 4 for number, name in enumerate(names)}
    scale = AdapterScale(3.0, policy)
    start = GradientStart(ranks, gradients_of(model, names, ids).__getitem__, scale)
    before = split_model(model, start, names, exact)
    model = attach_lora(model, ranks, scale=scale)
    start.write(model)
    for name, layer in adapted(model):
        assert torch.allclose(effective_weight(layer), before[name], atol=1e-5)
        assert not torch.allclose(layer.base_layer.weight, before[name], atol=1e-2)


def decaying(rows: int, columns: int, least: float) -> Tensor:
    """A matrix whose singular values fall from 1 to ``least`` by one factor."""
    source = torch.Generator().manual_seed(0)
    sides = [torch.linalg.qr(torch.randn(n, 32, generator=source).double())[0] for n in (rows, columns)]
    return ((sides[0] * torch.logspace(0, math.log10(least), 32)) @ sides[1].T).float()


def part_of(gradient_OI: Tensor) -> Tensor:
    """What LoRA-GA takes out of a matrix."""
    start = GradientStart({"m": RANK}, lambda name: gradient_OI, SCALE)
    return -start.split("m", torch.zeros_like(gradient_OI), exact)


@pytest.mark.parametrize("shape", [(96, 64), (64, 64), (48, 96)])
def test_the_part_of_lora_ga_does_not_depend_on_rounding_or_threads(shape: tuple[int, int]) -> None:
    """Else a resumed run and an export would put the trained adapter over another base."""
    gradient_OI, threads = decaying(*shape, 1e-3), torch.get_num_threads()
    part_OI = part_of(gradient_OI)
    noise_OI = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for other_OI in (gradient_OI, gradient_OI * (1 + 1e-7 * noise_OI)):
                assert float((part_of(other_OI) - part_OI).norm()) < 1e-3 * float(part_OI.norm())
    finally:
        torch.set_num_threads(threads)


def test_the_part_of_lora_ga_does_not_depend_on_the_order_of_sums() -> None:
    """Gradients of classifiers have singular values this small among the first 16."""
    gradient_OI = decaying(96, 64, 1e-10)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(2))
    part_OI = part_of(gradient_OI)
    assert float((part_of(gradient_OI[order]) - part_OI[order]).norm()) < 1e-3 * float(part_OI.norm())


def test_lora_ga_needs_two_singular_vectors_for_each_rank() -> None:
    start = GradientStart({"m": 5}, lambda name: torch.randn(8, 20), SCALE)
    with pytest.raises(AdapterError, match=r"2 × 5 singular vectors .* a rank of 4 or less"):
        start.split("m", torch.randn(8, 20), exact)


def test_gora_starts_as_the_projected_gradient_and_lowers_the_loss(make, blocks, ids) -> None:
    model, names = make("llama"), blocks["llama"]
    gradients, ranks = gradients_of(model, names, ids), uniform_ranks(names, 4)
    before = float(loss_of(model, ids))
    start = GradientStep(ranks, gradients.__getitem__, gamma=0.01)
    for name, weight in split_model(model, start, names, exact).items():
        assert torch.equal(model.get_submodule(name).weight, weight)
    model = attach_lora(model, ranks, scale=SCALE)
    rows = {name: layer.lora_A["default"].weight.detach().clone() for name, layer in adapted(model)}
    start.write(model)
    for name, layer in adapted(model):
        assert torch.equal(layer.lora_A["default"].weight, rows[name])
        solved = torch.linalg.lstsq(rows[name].T.double(), gradients[name].T.double()).solution.T
        wanted_OR = -0.01 / SCALE.of(4) * (rows[name].shape[1] / 4) ** 0.5 * solved
        up_OR = layer.lora_B["default"].weight.double()
        assert torch.allclose(up_OR, wanted_OR, rtol=1e-3, atol=1e-6 * float(wanted_OR.abs().max()))
    assert float(loss_of(model, ids)) < before


@pytest.mark.parametrize("scale", [SCALE, AdapterScale(3.0, "rslora")])
def test_gora_starts_with_gamma_times_the_norm_of_the_gradient(make, blocks, scale: AdapterScale) -> None:
    torch.manual_seed(0)
    model, names = make("llama"), blocks["llama"]
    gradients = {name: torch.randn_like(model.get_submodule(name).weight) for name in names}
    ranks = {name: 2 + place % 7 for place, name in enumerate(names)}
    model = attach_lora(model, ranks, scale=scale)
    GradientStep(ranks, gradients.__getitem__, gamma=0.05).write(model)
    norms = [
        float(effective_weight(layer).sub(layer.base_layer.weight).norm() / gradients[name].norm())
        for name, layer in adapted(model)
    ]
    assert sum(norms) / len(norms) == pytest.approx(0.05, rel=0.1)


def test_gradients_of_another_shape_and_adapters_that_lose_ranks_are_refused(make, blocks) -> None:
    names = blocks["llama"]
    wrong = GradientStart({"m": 2}, lambda name: torch.randn(8, 9), SCALE)
    with pytest.raises(AdapterError, match=r"has shape \(8, 9\), the matrix is \(8, 8\)"):
        wrong.split("m", torch.randn(8, 8), exact)
    model = attach_adalora(make("llama"), names, AdaLora(6, 2), total_steps=50)
    with pytest.raises(AdapterError, match="sets the ranks before training"):
        GradientStep(uniform_ranks(names, 6), lambda name: torch.zeros(1)).write(model)
