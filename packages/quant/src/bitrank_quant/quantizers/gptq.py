"""GPTQ: columns are quantized one by one, and the later columns compensate each column's rounding error.

For a linear layer with inputs x, quantizing W to Ŵ adds the error tr((W - Ŵ) H (W - Ŵ)ᵀ) with
H = (1/N) Σ x xᵀ. When column i is fixed, the best change of the columns j > i is - (w_i - ŵ_i) / U_ii · U_ij,
where U is the upper Cholesky factor of H⁻¹ (Frantar et al. 2023, equations 2 and 3, algorithm 1). The scales
of a group are found from the weights as they are when its first column comes, by
:func:`~bitrank_quant.quantizers.search.fit_scales`; formats with nested scales, which span rows, get all
scales first, from the original weights. Afterwards :mod:`~bitrank_quant.quantizers.refine` fits scales and
codes again under the same error.

An order of columns by their second moments (act-order) was tried with fixed scales: after refinement it
changed the output error of SmolLM2's matrices by less than one percent, so columns keep their order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format, Tensors
from bitrank_quant.kernels.quantize import feedback_, serves
from bitrank_quant.off_mps import off_mps
from bitrank_quant.quantizers.base import InputMoments, column_weights, grouped
from bitrank_quant.quantizers.grid import Grid, Scales
from bitrank_quant.quantizers.grids import grid_of, nested
from bitrank_quant.quantizers.refine import Refinement
from bitrank_quant.quantizers.search import fit_scales, rows_at_once, search, settle, split_scales

DAMPING = 0.01  # share of the mean of H's diagonal that is added to the diagonal
_TRIES = 6  # each with ten times the damping of the one before
REFINEMENTS = 2  # rounds: the second lowers the error by about 2 %, a third by 1 %


def gptq(
    weight_OI: Tensor,
    fmt: Format,
    moments: InputMoments,
    damping: float = DAMPING,
    refinements: int = REFINEMENTS,
) -> Tensors:
    """The stored tensors of ``weight_OI`` (O, I) in ``fmt``; 0 ``refinements`` is GPTQ as published.

    With the diagonal of the moments alone no column can compensate another, and the result is that of
    ``search``. Raises :class:`QuantError` when the moments cannot be factorized with any damping.
    """
    if moments.input_II is None:
        return search(weight_OI, fmt, moments)
    grid = grid_of(fmt)
    weight_GB = column_weights(moments, weight_OI, grid.block)
    input_II = moments.input_II.to(weight_OI.device, torch.float32)
    upper_II = _padded_factor(inverse_factor(input_II, damping), weight_GB.numel())
    damped_II = _damped(input_II, damping, weight_GB.numel()) if refinements else None
    parts = weight_OI.split(rows_at_once(weight_OI))
    given: list[Scales | None] = [None] * len(parts)
    stored: Tensors | None = None
    if nested(fmt):
        fitted = [fit_scales(grid, grouped(part_OI, grid.block), weight_GB) for part_OI in parts]
        stored, scales_OG = settle(grid, fitted, len(weight_OI))
        given = list(split_scales(scales_OG, parts))
    codes, found = [], []
    for part_OI, part_OG in zip(parts, given, strict=True):
        columns_OI = grouped(part_OI, grid.block).flatten(1)
        codes_OI, used_OG = error_feedback(grid, columns_OI, weight_GB, upper_II, part_OG)
        if damped_II is not None:
            refined = Refinement(grid, columns_OI, damped_II, codes_OI, used_OG)
            for _ in range(refinements):
                if part_OG is None:
                    refined.refit_scales()
                refined.descend()
            codes_OI, used_OG = refined.codes_OI, refined.scales_OG
        codes.append(grid.pack(codes_OI))
        found.append(used_OG)
    return {"codes": torch.cat(codes), **(stored or settle(grid, found, len(weight_OI))[0])}


def _damped(input_II: Tensor, damping: float, columns: int) -> Tensor:
    """H + damping · mean diag(H) · 1, and next to nothing for the columns that fill the last group."""
    mean = float(input_II.diagonal().mean()) or 1.0
    missing = columns - len(input_II)
    diagonal_I = torch.full((columns,), damping * mean, device=input_II.device)
    diagonal_I[len(input_II) :] = 1e-9 * mean
    return torch.nn.functional.pad(input_II, (0, missing, 0, missing)) + torch.diag(diagonal_I)


def inverse_factor(input_II: Tensor, damping: float = DAMPING) -> Tensor:
    """The upper triangular U with UᵀU = (H + damping · mean diag(H) · 1)⁻¹, fp32, from a factor in fp64.

    A column whose input is always zero gets a diagonal of one: its error changes nothing and is not passed
    on. A singular H gets more damping until it can be factorized. Raises :class:`QuantError` when it is not
    finite or no damping helps.
    """
    hessian_II = off_mps(input_II).double()
    if not torch.isfinite(hessian_II).all():
        raise QuantError(
            "the second moments of the inputs are not finite; check the model and the calibration data"
        )
    diagonal_I = hessian_II.diagonal()
    dead_I = diagonal_I <= 0
    mean = diagonal_I[~dead_I].mean() if (~dead_I).any() else diagonal_I.new_ones(())
    hessian_II = hessian_II + torch.diag(dead_I * mean)
    eye_II = torch.eye(len(hessian_II), dtype=torch.double, device=hessian_II.device)
    for attempt in range(_TRIES):
        lower_II, problem = torch.linalg.cholesky_ex(hessian_II + damping * 10**attempt * mean * eye_II)
        if problem == 0:
            upper_II, problem = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
            if problem == 0 and torch.isfinite(upper_II).all():
                return upper_II.float().to(input_II.device)
    raise QuantError("the second moments of the inputs cannot be factorized; give more calibration data")


def _padded_factor(upper_II: Tensor, columns: int) -> Tensor:
    """The factor with a unit diagonal for the columns that fill the last group: their errors go nowhere."""
    missing = columns - len(upper_II)
    return torch.block_diag(upper_II, torch.eye(missing, device=upper_II.device)) if missing else upper_II


def error_feedback(
    grid: Grid, weight_OI: Tensor, weight_GB: Tensor, upper_II: Tensor, given_OG: Scales | None = None
) -> tuple[Tensor, Scales]:
    """Codes (O, I) and scales (O, G) of a matrix in whole groups.

    ``weight_GB`` weighs the columns where scales are fitted; ``given_OG`` are scales that are fixed before.
    """
    weight_OI = weight_OI.clone()
    columns, width = weight_OI.shape[1], weight_GB.shape[1]
    codes, scales = [], list[Scales]()
    # The rest of the matrix changes after each whole group, so a group has all errors before it when its
    # scales are fitted.
    for group, start in enumerate(range(0, columns, width)):
        here, later = slice(start, start + width), slice(start + width, columns)
        fitted = fit_scales(grid, weight_OI[:, here], weight_GB[group]) if given_OG is None else None
        scales.append(fitted or tuple(one[:, group] for one in given_OG or ()))
        code_OB, error_OB = _one_group(grid, weight_OI[:, here], upper_II[here, here], scales[-1])
        codes.append(code_OB)
        weight_OI[:, later] -= error_OB @ upper_II[here, later]
    return torch.cat(codes, dim=1), tuple(torch.stack(one, dim=1) for one in zip(*scales, strict=True))


def _one_group(grid: Grid, weight_OB: Tensor, upper_BB: Tensor, scales_O: Scales) -> tuple[Tensor, Tensor]:
    """The codes (O, B) of a group's columns, and the errors (O, B) that later groups compensate.

    ``weight_OB`` changes in place.
    """
    if serves(weight_OB, upper_BB, *scales_O):
        found_OB, error_OB = feedback_(weight_OB, upper_BB, scales_O, grid.points)
        return grid.codes(found_OB), error_OB
    codes, errors = [], []
    for column in range(weight_OB.shape[1]):
        code_O1 = grid.quantize(weight_OB[:, column, None], scales_O)
        error_O = weight_OB[:, column] - grid.decode(code_O1, scales_O)[:, 0]
        error_O /= upper_BB[column, column]
        weight_OB[:, column + 1 :] -= error_O[:, None] * upper_BB[column, column + 1 :]
        codes.append(code_O1)
        errors.append(error_O)
    return torch.cat(codes, dim=1), torch.stack(errors, dim=1)
