"""PiSSA and CorDA: adapters that start as the largest directions of their matrices.

PiSSA takes U_r Σ_r V_rᵀ, the first r singular triplets of W (Meng et al. 2024, equations 2 to 4; QPiSSA if
the remainder is rounded); both factors of the adapter have √(Σ_r/s), as in PEFT. Further rounds of QPiSSA are
LoftQ from another start and are left out.

CorDA (Yang et al. 2024, instruction-previewed mode) takes U_r Σ_r V_rᵀ C⁻¹ from W C = U Σ Vᵀ, with the second
moments C of the inputs: the directions with the largest outputs, and not the directions of the residual that
QERA repairs. Since Σ_r V_rᵀ C⁻¹ = U_rᵀ W, nothing is inverted. As in PEFT, 1 % of the mean of its diagonal is
added to that of C; PEFT adds more if C⁻¹ is inexact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.input_weighted import InputNorm, output_directions
from bitrank_adapters.lowrank import best_low_rank, in_fp64
from bitrank_adapters.part_start import Part, PartStart
from bitrank_adapters.plans import RankPlan

_DAMPING = 0.01  # share of the mean second moment that CorDA adds to each
_LEAST = 1e-12  # a singular value below this share of the largest counts as this share


class PrincipalStart(PartStart):
    """PiSSA for the matrices of ``ranks``; one without a rank above 0 stays as it is."""

    def _part(self, name: str, whole_OI: Tensor, rank: int) -> Part:
        factors = best_low_rank(whole_OI, rank)
        root_R = factors.values_R.clamp_min(0).sqrt()
        return Part(factors.left_OR * root_R, root_R[:, None] * factors.right_RI)


class CordaStart(PartStart):
    """CorDA for the matrices of ``ranks``; ``inputs`` returns E[x xᵀ] (in, in) of a matrix by its name.

    C is scaled to a mean diagonal of 1, so that uncorrelated inputs of one scale give PiSSA's factors. In
    PEFT its scale, which follows the number of positions of a batch, changes the balance of both factors.
    """

    def __init__(self, ranks: RankPlan, inputs: Callable[[str], Tensor]) -> None:
        super().__init__(ranks)
        self._inputs = inputs

    def _part(self, name: str, whole_OI: Tensor, rank: int) -> Part:
        exact_OI = in_fp64(whole_OI)
        second_II = in_fp64(InputNorm(self._inputs(name)).second_II).to(exact_OI.device)
        if len(second_II) != whole_OI.shape[1]:
            raise AdapterError(
                f"the second moments of {name!r} are for {len(second_II)} inputs, the matrix has "
                f"{whole_OI.shape[1]}"
            )
        mean = second_II.diagonal().mean()
        scaled_II = second_II / mean if mean > 0 else torch.eye(len(second_II)).to(second_II)
        scaled_II = scaled_II + _DAMPING * torch.eye(len(scaled_II)).to(scaled_II)
        left_OR, values_R = output_directions(exact_OI, scaled_II @ scaled_II, rank)
        least = torch.finfo(values_R.dtype).tiny  # all values of a zero matrix are 0
        root_R = values_R.clamp_min((_LEAST * values_R[0]).clamp_min(least)).sqrt()
        down_RI = (left_OR.T @ exact_OI) / root_R[:, None]
        return Part((left_OR * root_R).to(whole_OI), down_RI.to(whole_OI))
