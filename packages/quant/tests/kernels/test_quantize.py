"""Compiled choice of codes: the numbers of plain torch, up to the order of sums in errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from bitrank_quant import (
    Affine,
    Codebook,
    Format,
    InputMoments,
    Int8Row,
    Symmetric,
    kernels,
    parse_format,
    quantize,
)
from bitrank_quant.kernels import quantize as compiled
from bitrank_quant.quantizers import refine
from bitrank_quant.quantizers.base import column_weights, grouped
from bitrank_quant.quantizers.gptq import _one_group, inverse_factor
from bitrank_quant.quantizers.grids import grid_of
from bitrank_quant.quantizers.refine import Refinement
from bitrank_quant.quantizers.search import CANDIDATES, _errors, fit_scales
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

T = TypeVar("T")
BLOCKS = st.sampled_from([1, 5, 16, 32, 64, 100])
FORMATS = st.one_of(
    st.builds(Affine, st.integers(2, 8), BLOCKS),
    st.builds(Symmetric, st.integers(2, 8), BLOCKS),
    st.builds(Codebook, st.sampled_from(["nf4", "fp4", "nf3"]), BLOCKS, st.just(False)),
    st.just(Int8Row()),
)
SEEDS = st.integers(0, 2**31)
EXAMPLES = settings(deadline=None, max_examples=60)


@pytest.fixture(autouse=True)
def _compiler(kernel_cache: Path) -> None:
    if (reason := compiled.missing()) is not None:
        pytest.skip(reason)


def plain(function: Callable[[], T]) -> T:
    """The result of ``function`` without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "switched_off", lambda: True)  # the environment is read once per process
        return function()


def drawn(seed: int, rows: int, columns: int) -> tuple[Tensor, InputMoments]:
    """Weights with some large ones, and the moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)
    weight_OI[torch.rand(rows, columns, generator=generator) < 0.01] *= 8
    mixed_II = torch.randn(columns, columns, generator=generator)
    x_NI = torch.randn(2 * columns, columns, generator=generator) @ mixed_II
    return weight_OI, InputMoments(x_NI.T @ x_NI / len(x_NI))


@EXAMPLES
@given(FORMATS, st.integers(1, 9), st.integers(1, 130), SEEDS)
def test_errors_of_scales_are_those_of_plain_torch(fmt: Format, rows: int, columns: int, seed: int) -> None:
    weight_OI, moments = drawn(seed, rows, columns)
    grid = grid_of(fmt)
    weights = grouped(weight_OI, grid.block)
    by = column_weights(moments, weight_OI, grid.block)
    shrinks = torch.linspace(1, 0.4, CANDIDATES).view(-1, 1, 1)
    candidates = grid.fit(grid.ranges(weights), shrinks)
    found_CRG = _errors(grid, weights, by, candidates)
    assert compiled.serves(weights, by, *candidates)
    expected_CRG = plain(lambda: _errors(grid, weights, by, candidates))
    largest = (weights.square() * by).sum(-1)
    assert ((found_CRG - expected_CRG).abs() <= 1e-5 * expected_CRG + 1e-9 * largest).all()


@EXAMPLES
@given(FORMATS, st.integers(1, 9), SEEDS)
def test_feedback_of_a_group_gives_the_numbers_of_plain_torch(fmt: Format, rows: int, seed: int) -> None:
    grid = grid_of(fmt)
    weight_OB, moments = drawn(seed, rows, grid.block or 40)
    upper_BB = inverse_factor(moments.second)
    scales = fit_scales(grid, weight_OB, moments.diagonal_I)

    def fed_back() -> tuple[Tensor, Tensor, Tensor]:
        changed_OB = weight_OB.clone()
        return *_one_group(grid, changed_OB, upper_BB, scales), changed_OB

    for found, expected in zip(fed_back(), plain(fed_back), strict=True):
        assert torch.equal(found, expected)


@EXAMPLES
@given(FORMATS, st.integers(1, 9), st.integers(1, 3), SEEDS)
def test_coordinate_descent_gives_the_numbers_of_plain_torch(
    fmt: Format, rows: int, groups: int, seed: int
) -> None:
    grid = grid_of(fmt)
    weight_OI, moments = drawn(seed, rows, groups * (grid.block or 40))
    groups_OGB = grouped(weight_OI, grid.block)
    scales = fit_scales(grid, groups_OGB, column_weights(moments, weight_OI, grid.block))
    codes_OI = grid.quantize(groups_OGB, scales).flatten(1)

    def descended() -> tuple[Tensor, Tensor]:
        refined = Refinement(grid, weight_OI, moments.second, codes_OI, scales)
        refined.descend()
        return refined.codes_OI, refined._values_OI

    for found, expected in zip(descended(), plain(descended), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("text", ["int8", "int3-g160", "int4-g64", "int4-g128"])
def test_descent_over_panels_lowers_the_error_as_over_the_whole_row(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(parse_format(text))
    weight_OI, moments = drawn(3, 5, 320 if text == "int3-g160" else 384)
    groups_OGB = grouped(weight_OI, grid.block)
    scales = fit_scales(grid, groups_OGB, column_weights(moments, weight_OI, grid.block))
    codes_OI = grid.quantize(groups_OGB, scales).flatten(1)

    def descended() -> Tensor:
        refined = Refinement(grid, weight_OI, moments.second, codes_OI, scales)
        refined.descend()
        lost_OI = weight_OI - refined._values_OI
        return (lost_OI @ moments.second * lost_OI).sum()

    panels = descended()
    assert panels == plain(descended)
    monkeypatch.setattr(refine, "_PANEL", 10**6)
    assert float(panels) == pytest.approx(float(descended()), rel=0.01)


@pytest.mark.parametrize("quantizer", ["search", "gptq"])
@pytest.mark.parametrize("text", ["int2-g64-dq", "int4-g64", "nf4-dq", "nf3", "int8", "sym4-g64"])
def test_a_matrix_has_the_output_error_of_plain_torch(text: str, quantizer: str) -> None:
    """Errors that are equal up to rounding may choose another of two scales: codes differ, errors do not."""
    weight_OI, moments = drawn(7, 96, 192)
    fmt = parse_format(text)

    def error() -> float:
        stored = quantize(weight_OI, fmt, quantizer, moments)
        lost_OI = fmt.decode(stored, (96, 192), torch.float32) - weight_OI
        return float((lost_OI @ moments.second * lost_OI).sum())

    assert error() == pytest.approx(plain(error), rel=1e-3)


def test_other_types_and_devices_are_left_to_plain_torch() -> None:
    assert compiled.serves(torch.zeros(1))
    assert not compiled.serves(torch.zeros(1, dtype=torch.float64))
    assert not compiled.serves(torch.zeros(1, device="meta"))
    assert not compiled.serves(torch.nn.Parameter(torch.zeros(1)))
    assert not plain(lambda: compiled.serves(torch.zeros(1)))
