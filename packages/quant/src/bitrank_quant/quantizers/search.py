"""Clip and scale search: the scales of each group with the least weighted squared error.

Round-to-nearest spreads the codes over the whole range of a group, so a single large weight widens every
step. A grid over a smaller range clips that weight and rounds the others to a finer grid; the better of the
two depends on the inputs. For each group, ranges of 16 sizes are tried. The scales of the best one are then
fitted by least squares to its codes, which is repeated while the error falls. The error of a weight is
multiplied by the second moment of its input. The range searches of GPTQ's code and of llama.cpp are of the
same kind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitrank_quant.formats.base import Format, Tensors
from bitrank_quant.kernels.quantize import errors, serves
from bitrank_quant.quantizers.base import InputMoments, column_weights, grouped
from bitrank_quant.quantizers.grid import Grid, Scales
from bitrank_quant.quantizers.grids import grid_of

CANDIDATES = 16
SMALLEST = 0.4  # least range that is tried, as a share of the full one: less clips more than even 2 bits gain
_REFITS = 3
_PART = 2**20  # weights in fp32 at once
# On a CPU, weights searched at once for each thread: the dozens of passes over them stay in its cache.
_CACHED = 2**17


def search(weight_OI: Tensor, fmt: Format, moments: InputMoments | None = None) -> Tensors:
    """The stored tensors of ``weight_OI`` (O, I) in ``fmt``.

    Without moments, every column has the same weight. Works on some rows at a time.
    """
    grid = grid_of(fmt)
    weight_GB = column_weights(moments, weight_OI, grid.block)
    on_cpu = weight_OI.device.type == "cpu"
    limit = min(_PART, _CACHED * torch.get_num_threads()) if on_cpu else _PART
    parts = weight_OI.split(rows_at_once(weight_OI, limit))
    fitted = [fit_scales(grid, grouped(part_OI, grid.block), weight_GB) for part_OI in parts]
    stored, scales_OG = settle(grid, fitted, len(weight_OI))
    codes = []
    for part_OI, part_OG in zip(parts, split_scales(scales_OG, parts), strict=True):
        codes_OGB = grid.quantize(grouped(part_OI, grid.block), part_OG)
        codes.append(grid.pack(codes_OGB.flatten(1)))
    return {"codes": torch.cat(codes), **stored}


def fit_scales(grid: Grid, weights: Tensor, column_weights: Tensor) -> Scales:
    """The scales of groups (..., B) with the least error Σ_b column_weight_b (w_b - decoded_b)²."""
    ranges = grid.ranges(weights)
    steps = [1.0 - (1.0 - SMALLEST) * step / (CANDIDATES - 1) for step in range(CANDIDATES)]
    shrinks = torch.tensor(steps, device=weights.device).view(-1, *[1] * (weights.dim() - 1))
    candidates = grid.fit(ranges, shrinks)
    best, least = _first_best(candidates, _errors(grid, weights, column_weights, candidates))
    full = tuple(one[0] for one in candidates)
    for _ in range(_REFITS):
        refitted = grid.refit(weights, grid.quantize(weights, best), column_weights, full)
        (error,) = _errors(grid, weights, column_weights, tuple(one[None] for one in refitted))
        wins = error < least
        best = tuple(torch.where(wins, new, old) for new, old in zip(refitted, best, strict=True))
        least = torch.where(wins, error, least)
    return best


def _errors(grid: Grid, weights: Tensor, column_weights: Tensor, candidates: Scales) -> Tensor:
    """The weighted squared errors of each group with each of the candidate scales (axis C)."""
    if serves(weights, column_weights, *candidates):
        # A group of columns alone, (O, B), has no axis of groups.
        alone = weights.dim() == 2
        as_groups = weights[:, None] if alone else weights
        scales_CRG = tuple(one[..., None] if alone else one for one in candidates)
        made = errors(as_groups, column_weights.expand(as_groups.shape[1:]), scales_CRG, grid.points)
        return made[..., 0] if alone else made
    return torch.stack(
        [_error(grid, weights, column_weights, scales) for scales in zip(*candidates, strict=True)]
    )


def _error(grid: Grid, weights: Tensor, column_weights: Tensor, scales: Scales) -> Tensor:
    """The weighted squared error of each group with ``scales``."""
    difference = grid.nearest(weights, scales).sub_(weights)
    return difference.square_().mul_(column_weights).sum(-1)


def _first_best(candidates: Scales, error_C: Tensor) -> tuple[Scales, Tensor]:
    """For each group the scales of the first candidate (axis C) with the least error, and that error.

    The errors of weights that are not finite are NaN: never less than another, so the full range stays.
    """
    compared_C = error_C.nan_to_num(nan=torch.inf, posinf=torch.inf)
    compared_C[0].masked_fill_(error_C[0].isnan(), -torch.inf)
    at = compared_C.argmin(dim=0, keepdim=True)
    return tuple(one.gather(0, at)[0] for one in candidates), error_C.gather(0, at)[0]


def rows_at_once(weight_OI: Tensor, weights: int | None = None) -> int:
    """Rows with about so many weights; 64 rows end on a whole byte at any bit width.

    By default as many as have small fp32 temporaries.
    """
    return max(64, (weights or _PART) // weight_OI.shape[1] // 64 * 64)


def settle(grid: Grid, parts: list[Scales], rows: int) -> tuple[Tensors, Scales]:
    """The stored scales of a matrix from those of its row parts, and the scales (O, G) that decoding uses."""
    whole = tuple(torch.cat(one) for one in zip(*parts, strict=True))
    stored = grid.store(whole)
    return stored, grid.read(stored, rows)


def split_scales(scales_OG: Scales, parts: tuple[Tensor, ...]) -> list[Scales]:
    """The scales of each of the row parts of a matrix."""
    sizes = [len(part) for part in parts]
    return list(zip(*(one.split(sizes) for one in scales_OG), strict=True))
