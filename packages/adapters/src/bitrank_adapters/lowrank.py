"""Best low-rank approximation of a residual, unweighted or with row and column weights.

LoftQ (Li et al. 2024) minimizes ‖R − L‖_F over L of rank r: the truncated SVD. LQ-LoRA (Guo et al. 2024,
section 3.3) minimizes ‖√F ∘ (R − L)‖_F with the Fisher information F. For F ≈ row · columnᵀ the solution is
the truncated SVD of D₁ R D₂, with D₁ = diag √row and D₂ = diag √column, multiplied by D₁⁻¹ and D₂⁻¹.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RowColumn = tuple[Tensor, Tensor]
# minimum weight of a row or column, as a share of the mean: without it, unobserved ones would cost nothing
_FLOOR = 1e-6


@dataclass(frozen=True)
class Factors:
    """``left_OR`` · diag(``values_R``) · ``right_RI`` in fp32.

    Columns of ``left_OR`` and rows of ``right_RI`` are orthonormal; values are in descending order.
    """

    left_OR: Tensor
    values_R: Tensor
    right_RI: Tensor

    def product(self) -> Tensor:
        """The product as an (out, in) matrix."""
        return (self.left_OR * self.values_R) @ self.right_RI


def in_fp64(matrix: Tensor) -> Tensor:
    """``matrix`` in fp64, on the CPU if it is on Apple's MPS, which has no fp64.

    In two steps: ``to("cpu", torch.float64)`` converts on MPS before it copies, which raises or gives zeros
    (pytorch issue 197715).
    """
    return (matrix.cpu() if matrix.device.type == "mps" else matrix).double()


def best_low_rank(residual_OI: Tensor, rank: int, weights: RowColumn | None = None) -> Factors:
    """Nearest matrix of ``rank`` to ``residual_OI``, in the norm of ``weights`` (row_O, column_I).

    Computed from the eigenvectors of the smaller Gram matrix, for a 1536 × 576 matrix several times cheaper
    than an SVD. The eigenvectors are fp32: this mixes directions with nearly equal singular values and costs
    less than 1e-7 of the norm that the approximation removes. The rest is fp64.
    """
    exact = in_fp64(residual_OI)
    weights = None if weights is None else (in_fp64(weights[0]), in_fp64(weights[1]))
    if exact.shape[0] < exact.shape[1]:
        transposed = _project(exact.T, rank, None if weights is None else (weights[1], weights[0]))
        left_OR, right_RI = transposed[1].T, transposed[0].T
    else:
        left_OR, right_RI = _project(exact, rank, weights)
    return thin_svd(left_OR, right_RI, residual_OI.device)


def reproducible_triplets(matrix_OI: Tensor, rank: int) -> Factors:
    """The first ``rank`` singular triplets of ``matrix_OI``, with signs that the matrix decides.

    For a start whose vectors belong to no common product. A decomposition may give both vectors of a triplet
    either sign, and mixes directions whose values are below its rounding, as its library and the number of
    threads have it. Here the largest entry of each right vector is positive, and the decomposition is one of
    the matrix in fp64: eigenvectors of a Gram matrix in fp32 lose values below 3e-4 of the largest, which
    gradients of classifiers have.
    """
    left_OK, values_K, right_KI = torch.linalg.svd(in_fp64(matrix_OI), full_matrices=False)
    left_OR, right_RI = left_OK[:, :rank], right_KI[:rank]
    largest_R1 = right_RI.gather(1, right_RI.abs().argmax(1, keepdim=True))
    signs_R1 = torch.where(largest_R1 < 0, -1.0, 1.0)
    parts = (left_OR * signs_R1[:, 0], values_K[:rank], right_RI * signs_R1)
    return Factors(*(part.float().to(matrix_OI.device) for part in parts))


def weighted_norm(matrix_OI: Tensor, weights: RowColumn | None = None) -> float:
    """‖D₁ M D₂‖_F, or ‖M‖_F without weights."""
    if weights is None:
        return float(torch.linalg.norm(matrix_OI.detach()))
    row_O, column_I = (_floored(w, matrix_OI.float()) for w in weights)
    return float((row_O @ matrix_OI.detach().float().square() @ column_I).sqrt())


def _project(tall_OI: Tensor, rank: int, weights: RowColumn | None) -> RowColumn:
    """(M D₂ V, Vᵀ D₂⁻¹), V = first ``rank`` right singular vectors of D₁ M D₂; D₁ cancels."""
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
    """``weight`` with its minimum raised above 0; all ones if the weights are all 0."""
    weight = weight.to(like)
    mean = weight.mean()
    return weight.clamp_min(mean * _FLOOR) if mean > 0 else torch.ones_like(weight)


def thin_svd(left_OR: Tensor, right_RI: Tensor, device: torch.device) -> Factors:
    """SVD of ``left_OR`` · ``right_RI``, two thin matrices, by QR of each; on ``device``."""
    q_OR, r_RR = torch.linalg.qr(left_OR)
    p_IR, s_RR = torch.linalg.qr(right_RI.T)
    u_RR, values_R, vh_RR = torch.linalg.svd(r_RR @ s_RR.T)
    parts = (q_OR @ u_RR, values_R, vh_RR @ p_IR.T)
    return Factors(*(part.float().to(device) for part in parts))
