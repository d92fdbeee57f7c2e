"""Weights that correct errors of earlier layers.

A layer was made for inputs x and gets x̂, because layers before it are quantized. Among all matrices W*, the
outputs W* x̂ are nearest to W x, in the mean of squares, for W* = W E[x x̂ᵀ] E[x̂ x̂ᵀ]⁻¹. A term λ ‖W* - W‖²
keeps W* at W in directions that the calibration data hardly use. GPTAQ (Li et al. 2025) and Qronos (Zhang et
al. 2025) quantize towards the same target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitrank_quant.errors import QuantError

CORRECTION_DAMPING = 0.1  # of the mean of the diagonal of E[x̂ x̂ᵀ]


def corrected_weight(
    weight_OI: Tensor, now_II: Tensor, cross_II: Tensor, damping: float = CORRECTION_DAMPING
) -> Tensor:
    """W* = W (C + λ) (Ĥ + λ)⁻¹ in fp32, with C = ``cross_II`` = E[x x̂ᵀ] and Ĥ = ``now_II`` = E[x̂ x̂ᵀ].

    λ is ``damping`` times the mean of the diagonal of Ĥ. Raises :class:`QuantError` if Ĥ cannot be
    factorized.
    """
    now_II, cross_II = now_II.double(), cross_II.double()
    mean = float(now_II.diagonal().mean()) or 1.0
    ridge_II = damping * mean * torch.eye(len(now_II), dtype=now_II.dtype, device=now_II.device)
    lower_II, problem = torch.linalg.cholesky_ex(now_II + ridge_II)
    if problem != 0:
        raise QuantError("the second moments of the inputs cannot be factorized; give more calibration data")
    target_OI = weight_OI.double() @ (cross_II + ridge_II)
    return torch.cholesky_solve(target_OI.T, lower_II).T.to(torch.float32)
