"""Zeros as a matrix, inputs or gradient give every start finite factors that add up to the matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bitrank_adapters import (
    AdapterScale,
    AdapterStart,
    CordaStart,
    GradientStart,
    GradientStep,
    PrincipalStart,
    ResidualStart,
    adapted,
    attach_lora,
)
from torch import Tensor, nn

SHAPE, RANK = (16, 12), 4
RANKS, SCALE = {"m": RANK}, AdapterScale()
RANDOM, ZERO = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), torch.zeros(SHAPE)
EVEN, NONE = torch.eye(SHAPE[1]), torch.zeros(SHAPE[1], SHAPE[1])

SPLITTING: dict[str, Callable[[Tensor, Tensor], AdapterStart]] = {
    "pissa": lambda inputs, gradient: PrincipalStart(RANKS),
    "corda": lambda inputs, gradient: CordaStart(RANKS, lambda _: inputs),
    "lora-ga": lambda inputs, gradient: GradientStart(RANKS, lambda _: gradient, SCALE),
}
KEEPING: dict[str, Callable[[Tensor, Tensor], AdapterStart]] = {
    "loftq": lambda inputs, gradient: ResidualStart(RANKS),
    "lq-lora": lambda inputs, gradient: ResidualStart(
        RANKS, weights={"m": (gradient.square().mean(1), inputs.diagonal())}
    ),
    "qera": lambda inputs, gradient: ResidualStart(RANKS, inputs=lambda _: inputs),
    "gora": lambda inputs, gradient: GradientStep(RANKS, lambda _: gradient),
}


def started(start: AdapterStart, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """What is stored of ``weight_OI``, and the product of the adapter that starts by ``start``."""
    stored_OI = start.split("m", weight_OI, lambda whole_OI: (4 * whole_OI).round() / 4)
    model = attach_lora(nn.ModuleDict({"m": nn.Linear(SHAPE[1], SHAPE[0], bias=False)}), RANKS, scale=SCALE)
    start.write(model)
    (layer,) = (layer for _, layer in adapted(model))
    return stored_OI, layer.get_delta_weight("default")


@pytest.mark.parametrize("name", SPLITTING)
@pytest.mark.parametrize("inputs", [EVEN, NONE], ids=["inputs", "no inputs"])
@pytest.mark.parametrize("gradient", [RANDOM, ZERO], ids=["gradient", "no gradient"])
@pytest.mark.parametrize("weight_OI", [RANDOM, ZERO], ids=["matrix", "zero matrix"])
def test_remainder_and_adapter_are_the_matrix(
    name: str, inputs: Tensor, gradient: Tensor, weight_OI: Tensor
) -> None:
    stored_OI, product_OI = started(SPLITTING[name](inputs, gradient), weight_OI)
    assert torch.allclose(stored_OI + product_OI, weight_OI, atol=1e-5)
    if name != "lora-ga" and weight_OI is ZERO:  # directions of the gradient are taken out of any matrix
        assert torch.equal(stored_OI, ZERO) and torch.equal(product_OI, ZERO)


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("inputs", [EVEN, NONE], ids=["inputs", "no inputs"])
@pytest.mark.parametrize("gradient", [RANDOM, ZERO], ids=["gradient", "no gradient"])
@pytest.mark.parametrize("weight_OI", [RANDOM, ZERO], ids=["matrix", "zero matrix"])
def test_a_start_that_keeps_the_matrix_is_finite(
    name: str, inputs: Tensor, gradient: Tensor, weight_OI: Tensor
) -> None:
    stored_OI, product_OI = started(KEEPING[name](inputs, gradient), weight_OI)
    assert torch.equal(stored_OI, weight_OI) and torch.isfinite(product_OI).all()
    if name != "gora" and weight_OI is ZERO:
        assert torch.equal(product_OI, ZERO), "nothing is lost in quantization"
