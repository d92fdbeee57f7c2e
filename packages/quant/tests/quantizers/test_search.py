"""The shortcuts of the search change no bit: it equals its definition, candidate by candidate with codes.

Compiled passes add errors in another order, and may choose the other of two scales with equal errors.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from bitrank_quant import InputMoments, kernels, parse_format
from bitrank_quant.formats.codebook import CODEBOOKS, nearest, nearest_values
from bitrank_quant.quantizers import grid_of
from bitrank_quant.quantizers.base import column_weights, grouped
from bitrank_quant.quantizers.grid import Grid, Scales
from bitrank_quant.quantizers.search import CANDIDATES, SMALLEST, fit_scales, search, settle
from torch import Tensor

NAMES = ["int2-g64", "int3-g32", "int4-g64-dq", "int6-g64", "int8-g64", "nf3", "nf4", "nf4-dq", "fp4", "int8"]


def trained(rows: int = 70, columns: int = 200) -> Tensor:
    """Weights with a few large values, as trained matrices have."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(rows, columns, generator=generator)
    return torch.where(torch.rand(rows, columns, generator=generator) < 0.01, 8 * weight_OI, weight_OI)


def with_values(value: float) -> Tensor:
    weight_OI = trained()
    weight_OI[3:9] = value
    weight_OI[20, 64:128] = value
    return weight_OI


MATRICES = {
    "trained": trained(),
    "zero rows": with_values(0.0),
    "negative zeros": with_values(-0.0),
    "constant rows": with_values(0.7),
    "subnormal": with_values(1e-40),
    "tiny": 1e-30 * trained(),
    "huge": 1e30 * trained(),
    "far from zero": 100 + 0.01 * trained(),
    "negative": -trained().abs(),
    "few values": trained().sign(),
    "one row": trained(1),
    "one column": trained(8, 1),
    "bf16": trained().bfloat16(),
    "infinite": with_values(torch.inf),
}


def moments(columns: int, kind: str) -> InputMoments | None:
    weight_I = torch.rand(columns, generator=torch.Generator().manual_seed(1)).square()
    if kind == "dead inputs":
        weight_I[: columns // 2] = 0.0
    return None if kind == "none" else InputMoments(weight_I)


def written_out(grid: Grid, weights: Tensor, weight_GB: Tensor) -> Scales:
    """:func:`fit_scales` by its definition: every candidate is encoded and decoded."""

    def error(scales: Scales) -> Tensor:
        decoded = grid.decode(grid.quantize(weights, scales), scales)
        return ((decoded - weights).square() * weight_GB).sum(-1)

    def better(new: Scales, old: Scales) -> Scales:
        wins = error(new) < error(old)
        return tuple(torch.where(wins, a, b) for a, b in zip(new, old, strict=True))

    best = grid.fit(grid.ranges(weights), 1.0)
    for step in range(1, CANDIDATES):
        shrink = 1.0 - (1.0 - SMALLEST) * step / (CANDIDATES - 1)
        best = better(grid.fit(grid.ranges(weights), shrink), best)
    for _ in range(3):
        full = grid.fit(grid.ranges(weights), 1.0)
        best = better(grid.refit(weights, grid.quantize(weights, best), weight_GB, full), best)
    return best


@pytest.mark.parametrize("kind", ["none", "unequal", "dead inputs"])
@pytest.mark.parametrize("name", NAMES)
def test_search_stores_the_bits_of_its_definition(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "switched_off", lambda: True)
    fmt = parse_format(name)
    grid = grid_of(fmt)
    for label, weight_OI in MATRICES.items():
        given = moments(weight_OI.shape[1], kind)
        weight_GB = column_weights(given, weight_OI, grid.block)
        weight_OGB = grouped(weight_OI, grid.block)
        stored, scales_OG = settle(grid, [written_out(grid, weight_OGB, weight_GB)], len(weight_OI))
        expected = {"codes": grid.pack(grid.quantize(weight_OGB, scales_OG).flatten(1)), **stored}
        found = search(weight_OI, fmt, given)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(bits(found[key]), bits(tensor)), (label, key)


@pytest.mark.parametrize("name", NAMES)
def test_search_has_the_error_of_its_definition_in_every_group(name: str) -> None:
    grid = grid_of(parse_format(name))
    for label, weight_OI in MATRICES.items():
        weight_GB = column_weights(moments(weight_OI.shape[1], "unequal"), weight_OI, grid.block)
        weight_OGB = grouped(weight_OI, grid.block)
        found, expected = (
            (grid.nearest(weight_OGB, scales) - weight_OGB).double().square().mul(weight_GB).sum(-1)
            for scales in (fit_scales(grid, weight_OGB, weight_GB), written_out(grid, weight_OGB, weight_GB))
        )
        assert torch.equal(found.isfinite(), expected.isfinite()), label
        finite = expected.isfinite()
        # Squares of fp32 numbers below 1e-22 or above 1e19 leave the range of fp32 in both.
        near = (found - expected).abs() <= 1e-3 * expected + 1e-12 * weight_OGB.double().square().sum(-1)
        assert near[finite].all(), label


def bits(tensor: Tensor) -> Tensor:
    """The bytes of ``tensor``, so that NaN equals itself and 0 differs from -0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("-dq")])
def test_nearest_values_are_those_of_the_codes(name: str) -> None:
    grid = grid_of(parse_format(name))
    for label in ("trained", "zero rows", "constant rows", "tiny", "far from zero"):
        weight_OGB = grouped(MATRICES[label], grid.block)
        for shrink in (1.0, 0.6):
            scales = grid.fit(grid.ranges(weight_OGB), shrink)
            codes = grid.quantize(weight_OGB, scales)
            assert torch.equal(grid.nearest(weight_OGB, scales), grid.decode(codes, scales)), label


@pytest.mark.parametrize("name", CODEBOOKS)
def test_nearest_entry_of_a_book_without_codes_is_that_of_the_code(name: str) -> None:
    book = CODEBOOKS[name]
    middles = torch.tensor([(low + high) / 2 for low, high in pairwise(book.sort().values)])
    near = [torch.nextafter(middles, torch.tensor(end)) for end in (-2.0, 2.0)]
    values = torch.cat([book, middles, *near, torch.tensor([-9.0, 9.0]), torch.linspace(-1.1, 1.1, 999)])
    assert torch.equal(nearest_values(values, book), book[nearest(values, book).int()])


def test_scales_of_a_strided_part_are_those_of_its_copy() -> None:
    # Error feedback fits groups that are slices of a matrix.
    weight_OI, weight_B = trained(), torch.rand(64, generator=torch.Generator().manual_seed(2))
    for name in ("int3-g64", "nf4"):
        grid = grid_of(parse_format(name))
        part, copy = weight_OI[:, 64:128], weight_OI[:, 64:128].clone()
        pairs = zip(fit_scales(grid, part, weight_B), fit_scales(grid, copy, weight_B), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
