"""Best low-rank approximation of what a matrix computes from its inputs: QERA, CLoQ and CorDA.

For inputs x with second moments R = E[x xᵀ], an error E of the weights changes the outputs by E x, whose mean
square is ‖E R^½‖²_F. The matrix L of rank r that minimizes ‖(E − L) R^½‖_F follows from the singular value
decomposition E R^½ = U Σ Vᵀ: L = U_r Σ_r V_rᵀ R^{−½} (QERA, Zhang et al. 2024, theorem 1, whose matrices are
transposed). CLoQ (Deng et al. 2025, theorem 3.1) has another root of XᵀX = N R in place of R^½. Roots of one
matrix differ by a rotation, which changes neither U nor Σ, so both have the same L.

Since Σ_r V_rᵀ = U_rᵀ E R^½, also L = U_r U_rᵀ E: a projection of E on the directions of its largest outputs.
No root is inverted, so R may be singular.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.lowrank import Factors, in_fp64, thin_svd


@dataclass(frozen=True)
class InputNorm:
    """‖M R^½‖_F of matrices M (out, in), with the second moments R of their inputs (in, in).

    Raises :class:`AdapterError` if R is not square or not finite.
    """

    second_II: Tensor

    def __post_init__(self) -> None:
        if self.second_II.dim() != 2 or self.second_II.shape[0] != self.second_II.shape[1]:
            raise AdapterError(
                f"second moments of inputs must be a square matrix, got shape {tuple(self.second_II.shape)}"
            )
        if not torch.isfinite(self.second_II).all():
            raise AdapterError(
                "the second moments of inputs are not finite; check model and calibration data"
            )

    def of(self, matrix_OI: Tensor) -> float:
        """The norm of ``matrix_OI``: the root mean square of its outputs, over all of them."""
        exact_OI = in_fp64(matrix_OI.detach())
        exact_II = in_fp64(self.second_II).to(exact_OI.device)
        return float(((exact_OI @ exact_II) * exact_OI).sum().clamp_min(0).sqrt())

    def best(self, residual_OI: Tensor, rank: int) -> Factors:
        """Nearest matrix of ``rank`` to ``residual_OI`` in this norm."""
        exact_OI = in_fp64(residual_OI.detach())
        left_OR, _ = output_directions(exact_OI, self.second_II, rank)
        return thin_svd(left_OR, left_OR.T @ exact_OI, residual_OI.device)


def output_directions(matrix_OI: Tensor, second_II: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The first ``rank`` left singular vectors (out, rank) and singular values (rank,) of M R^½, in fp64.

    From eigenvectors of the smaller of both Gram matrices: M R Mᵀ needs no root of R.
    """
    exact_OI = in_fp64(matrix_OI.detach())
    exact_II = in_fp64(second_II.detach()).to(exact_OI.device)
    if exact_OI.shape[0] <= exact_OI.shape[1]:
        squares_O, vectors_OO = torch.linalg.eigh(exact_OI @ exact_II @ exact_OI.T)
        left_OR = vectors_OO.flip(1)[:, :rank]
        return left_OR, squares_O.flip(0)[:rank].clamp_min(0).sqrt()
    powers_I, basis_II = torch.linalg.eigh(exact_II)
    rooted_OI = (exact_OI @ basis_II) * powers_I.clamp_min(0).sqrt()
    squares_I, vectors_II = torch.linalg.eigh(rooted_OI.T @ rooted_OI)
    left_OR, _ = torch.linalg.qr(rooted_OI @ vectors_II.flip(1)[:, :rank])
    return left_OR, squares_I.flip(0)[:rank].clamp_min(0).sqrt()
