"""The best low-rank matrix near a residual, plainly or under a weight per row and column.

LoftQ (Li et al. 2024) asks for min ‖R − L‖_F over L of rank r: the truncated SVD. LQ-LoRA (Guo et al. 2024, section 3.3) asks for
min ‖√F ∘ (R − L)‖_F with F the Fisher information; with F ≈ row · columnᵀ that is the truncated SVD of D₁ R D₂, D₁ = diag √row and
D₂ = diag √column, taken back by D₁⁻¹ and D₂⁻¹.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RowColumn = tuple[Tensor, Tensor]
_FLOOR = 1e-6  # least weight of a row or column, as a share of the mean: what was never seen must not be free


@dataclass(frozen=True)
class Factors:
    """``left_OR`` · diag(``values_R``) · ``right_RI``: orthonormal columns, values largest first, orthonormal rows; fp32."""

    left_OR: Tensor
    values_R: Tensor
    right_RI: Tensor

    def product(self) -> Tensor:
        """The (out, in) matrix."""
        return (self.left_OR * self.values_R) @ self.right_RI


def best_low_rank(residual_OI: Tensor, rank: int, weights: RowColumn | None = None) -> Factors:
    """The matrix of ``rank`` nearest to ``residual_OI``, in the norm that ``weights`` (row_O, column_I) give.

    From the eigenvectors of the smaller Gram matrix: for a 1536 × 576 matrix several times cheaper than an SVD. These are found in fp32,
    which turns directions that lose nearly the same into each other and costs less than a ten-millionth of what is repaired; the rest is
    fp64. On devices without fp64 the CPU does it.
    """
    exact = residual_OI.to("cpu" if residual_OI.device.type == "mps" else residual_OI.device, torch.float64)
    if exact.shape[0] < exact.shape[1]:
        turned = _project(exact.T, rank, None if weights is None else (weights[1], weights[0]))
        left_OR, right_RI = turned[1].T, turned[0].T
    else:
        left_OR, right_RI = _project(exact, rank, weights)
    return _orthonormal(left_OR, right_RI, residual_OI.device)


def weighted_norm(matrix_OI: Tensor, weights: RowColumn | None = None) -> float:
    """‖D₁ M D₂‖_F, or ‖M‖_F without weights."""
    if weights is None:
        return float(torch.linalg.norm(matrix_OI.detach()))
    row_O, column_I = (_floored(w, matrix_OI.float()) for w in weights)
    return float((row_O @ matrix_OI.detach().float().square() @ column_I).sqrt())


def _project(tall_OI: Tensor, rank: int, weights: RowColumn | None) -> RowColumn:
    """(M D₂ V, Vᵀ D₂⁻¹) with V the first ``rank`` right singular vectors of D₁ M D₂; D₁ cancels out of the product."""
    if weights is None:
        vectors_IR = _right_vectors(tall_OI, rank)
        return tall_OI @ vectors_IR, vectors_IR.T
    row_O, column_I = (_floored(w, tall_OI).sqrt() for w in weights)
    vectors_IR = _right_vectors(row_O[:, None] * tall_OI * column_I, rank)
    return (tall_OI * column_I) @ vectors_IR, vectors_IR.T / column_I


def _right_vectors(tall_OI: Tensor, rank: int) -> Tensor:
    single_OI = tall_OI.float()
    _, vectors_II = torch.linalg.eigh(single_OI.T @ single_OI)
    return vectors_II.flip(1)[:, :rank].to(tall_OI)


def _floored(weight: Tensor, like: Tensor) -> Tensor:
    """``weight`` without zeros; all ones when there is nothing but zeros."""
    weight = weight.to(like)
    mean = weight.mean()
    return weight.clamp_min(mean * _FLOOR) if mean > 0 else torch.ones_like(weight)


def _orthonormal(left_OR: Tensor, right_RI: Tensor, device: torch.device) -> Factors:
    """The SVD of a product of two thin matrices, by QR of each."""
    q_OR, r_RR = torch.linalg.qr(left_OR)
    p_IR, s_RR = torch.linalg.qr(right_RI.T)
    u_RR, values_R, vh_RR = torch.linalg.svd(r_RR @ s_RR.T)
    parts = (q_OR @ u_RR, values_R, vh_RR @ p_IR.T)
    return Factors(*(part.float().to(device) for part in parts))
