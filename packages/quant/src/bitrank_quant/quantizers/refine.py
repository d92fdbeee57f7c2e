"""Refinement of codes and scales under the error at the layer's inputs, by coordinate descent.

GPTQ fixes each column once, with scales that were fitted to the weights alone. Afterwards, for the error
tr((W - Ŵ) H (W - Ŵ)ᵀ), the scales of each group have a least-squares solution for given codes, and each
column has a best value for given other columns, w_j + Σ_k≠j (w_k - ŵ_k) H_kj / H_jj, which is rounded to the
nearest code. One round does both, for all rows at once; neither step raises the error of a row. The column
step is that of QuantEase (Behdin et al. 2023, equation 5).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bitrank_quant.kernels.quantize import descend_, serves
from bitrank_quant.quantizers.grid import Grid, Scales

_PANEL = 128  # about so many columns whose changes reach the rest of the matrix together


class Refinement:
    """Codes (O, I) and scales (O, G) of ``weight_OI``, in whole groups; ``moments_II`` is damped H."""

    def __init__(
        self, grid: Grid, weight_OI: Tensor, moments_II: Tensor, codes_OI: Tensor, scales_OG: Scales
    ) -> None:
        self._grid, self._moments_II = grid, moments_II
        self._width = weight_OI.shape[1] // scales_OG[0].shape[1]
        self.codes_OI = codes_OI.clone()
        self.scales_OG = tuple(one.clone() for one in scales_OG)
        self._values_OI = torch.empty_like(weight_OI)
        for group in range(scales_OG[0].shape[1]):
            columns = self._columns(group)
            self._values_OI[:, columns] = grid.decode(self.codes_OI[:, columns], self._scales(group))
        # Minus half the gradient of the error by the values.
        self._pull_OI = (weight_OI - self._values_OI) @ moments_II

    def _columns(self, group: int) -> slice:
        return slice(group * self._width, (group + 1) * self._width)

    def _scales(self, group: int) -> Scales:
        return tuple(one[:, group] for one in self.scales_OG)

    def refit_scales(self) -> None:
        """Fit the scales of each group to its codes, group by group; rows where that fails keep theirs."""
        for group in range(self.scales_OG[0].shape[1]):
            columns = self._columns(group)
            basis_OKB = torch.stack(self._grid.basis(self.codes_OI[:, columns]), dim=1)
            curved_OKB = basis_OKB @ self._moments_II[columns, columns]
            curvature_OKK = curved_OKB @ basis_OKB.mT
            pull_OK = (basis_OKB @ self._pull_OI[:, columns, None])[:, :, 0]
            change_OK = self._rounded_change(group, curvature_OKK, pull_OK)
            gain_O = (
                2 * change_OK * pull_OK - change_OK * (curvature_OKK @ change_OK[:, :, None])[:, :, 0]
            ).sum(1)
            change_OK = torch.where((gain_O > 0)[:, None], change_OK, 0.0)
            for number, one in enumerate(self.scales_OG):
                one[:, group] += change_OK[:, number]
            changed_OB = (change_OK[:, :, None] * basis_OKB).sum(1)
            self._values_OI[:, columns] += changed_OB
            self._pull_OI -= changed_OB @ self._moments_II[columns]

    def _rounded_change(self, group: int, curvature_OKK: Tensor, pull_OK: Tensor) -> Tensor:
        """The best change of a group's scales: one after the other is solved for with those that follow,
        and rounded to its stored type. Not finite where codes leave a scale open."""
        change_OK = torch.zeros_like(pull_OK)
        for number, scale_O in enumerate(self._scales(group)):
            rest = slice(number, None)
            left_OK = pull_OK - (curvature_OKK @ change_OK[:, :, None])[:, :, 0]
            solved_OK, _ = torch.linalg.solve_ex(curvature_OKK[:, rest, rest], left_OK[:, rest])
            wanted_O = torch.nan_to_num(scale_O + solved_OK[:, 0], nan=0.0, posinf=0.0, neginf=0.0)
            change_OK[:, number] = self._grid.rounded(wanted_O, number) - scale_O
        return change_OK

    def descend(self) -> None:
        """Choose the code of each column again, given all others."""
        for here in self._panels():
            changes_OP = self._descend_panel(here)
            self._pull_OI -= changes_OP @ self._moments_II[here]

    def _panels(self) -> Iterator[slice]:
        """Whole groups that have about :data:`_PANEL` columns, or parts of one group that is wider."""
        columns, width = self._values_OI.shape[1], self._width
        groups = width * (_PANEL // width) or width  # columns of whole groups
        panel = min(groups, _PANEL)
        for first in range(0, columns, groups):
            last = min(first + groups, columns)
            for start in range(first, last, panel):
                yield slice(start, min(start + panel, last))

    def _descend_panel(self, here: slice) -> Tensor:
        """Choose the codes of the columns ``here``; returns the changes of values."""
        values_OP, pull_OP = self._values_OI[:, here], self._pull_OI[:, here].clone()
        moments_PP = self._moments_II[here, here]
        groups = slice(here.start // self._width, -(-here.stop // self._width))
        scales_OG = tuple(one[:, groups] for one in self.scales_OG)
        if serves(values_OP, pull_OP, moments_PP, *scales_OG):
            found_OP, changes_OP = descend_(
                values_OP, pull_OP, moments_PP, scales_OG, self._width, self._grid.points
            )
            self.codes_OI[:, here] = self._grid.codes(found_OP)
            return changes_OP
        changes_OP = torch.zeros_like(pull_OP)
        for column in range(pull_OP.shape[1]):
            scales_O = tuple(one[:, column // self._width] for one in scales_OG)
            best_O = values_OP[:, column] + pull_OP[:, column] / moments_PP[column, column]
            code_O1 = self._grid.quantize(best_O[:, None], scales_O)
            change_O = self._grid.decode(code_O1, scales_O)[:, 0] - values_OP[:, column]
            self.codes_OI[:, here.start + column] = code_O1[:, 0]
            values_OP[:, column] += change_O
            changes_OP[:, column] = change_O
            pull_OP -= change_O[:, None] * moments_PP[column]
        return changes_OP
