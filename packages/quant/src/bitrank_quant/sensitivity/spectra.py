"""Singular values of weight gradients and of weighted quantization errors."""

from __future__ import annotations

import torch
from torch import Tensor

from bitrank_quant.off_mps import off_mps
from bitrank_quant.sensitivity.samples import InputSums

SPECTRUM = 128  # singular values kept


def singular_values(matrix_OI: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Singular values, largest first, as roots of the eigenvalues of the smaller Gram matrix.

    Many times cheaper than an SVD. With ``dtype`` fp32, values below a thousandth of the largest are noise.
    """
    exact_OI = off_mps(matrix_OI).to(dtype)
    tall = exact_OI if exact_OI.shape[0] >= exact_OI.shape[1] else exact_OI.T
    return torch.linalg.eigvalsh(tall.T @ tall).flip(0).clamp_min(0).sqrt()


def repair_tail(delta_OI: Tensor, row_O: Tensor, inputs: InputSums) -> Tensor:
    """½ Σ_{k>r} σ_k² for r = 0, 1, 2 …, at most :data:`SPECTRUM`: the loss that is left of the error
    ``delta_OI`` after its best correction of rank r.

    σ are the singular values of diag(√row) Δ R^½ with the second moments R of the inputs: for a correction C
    the loss is ½ ‖diag(√row) (Δ − C) R^½‖², which the truncated SVD minimizes (QERA, Zhang et al. 2024,
    theorem 1, with R in full; here the outputs are weighted as well). The smaller Gram matrix gives σ²; where
    outputs are not more than inputs, it needs no root of R.
    """
    weighted_OI = row_O.to(delta_OI).sqrt()[:, None] * delta_OI
    if delta_OI.shape[0] <= delta_OI.shape[1]:
        gram = (weighted_OI @ inputs.mean_II) @ weighted_OI.T
    else:
        gram = inputs.root_II @ (weighted_OI.T @ weighted_OI) @ inputs.root_II
    energy_K = torch.linalg.eigvalsh(off_mps(gram)).flip(0).clamp_min(0)
    tail_R = 0.5 * torch.cat([energy_K, energy_K.new_zeros(1)]).flip(0).cumsum(0).flip(0)
    return tail_R[: SPECTRUM + 1].float().cpu()
