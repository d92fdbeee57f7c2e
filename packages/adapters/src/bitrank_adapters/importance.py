"""AdaLoRA's importance update and orthogonality term for all matrices at once.

PEFT executes a few operations for each of hundreds of small tensors. The arithmetic here is the same (tests
compare both).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def update_importance(allocator: Any, parameters: dict[str, Tensor]) -> None:
    """Update AdaLoRA's importance averages (Zhang et al. 2023, equations 8 to 10).

    Ī ← β₁Ī + (1−β₁)I and Ū ← β₂Ū + (1−β₂)|I − Ī| with I = |w ∂L/∂w|. ``allocator`` is PEFT's
    ``RankAllocator``, whose averages are updated in place. Every one of ``parameters`` must have a gradient.
    """
    names, weights = list(parameters), list(parameters.values())
    for averages in (allocator.exp_avg_ipt, allocator.exp_avg_unc):
        averages.update({name: torch.zeros_like(p) for name, p in parameters.items() if name not in averages})
    smooth = [allocator.exp_avg_ipt[name] for name in names]
    unsure = [allocator.exp_avg_unc[name] for name in names]
    with torch.no_grad():
        now = torch._foreach_mul(weights, [p.grad for p in weights])  # type: ignore[misc]
        torch._foreach_abs_(now)
        torch._foreach_mul_(smooth, allocator.beta1)
        torch._foreach_add_(smooth, now, alpha=1 - allocator.beta1)
        torch._foreach_sub_(now, smooth)
        torch._foreach_abs_(now)
        torch._foreach_mul_(unsure, allocator.beta2)
        torch._foreach_add_(unsure, now, alpha=1 - allocator.beta2)
    allocator.ipt.update(zip(names, now, strict=True))  # PEFT expects averages for the keys of this dict


class OffOrthogonal(torch.autograd.Function):
    """Mean over matrices of ‖F Fᵀ − I‖_F; the short side of each F is its rank.

    Gradient: 2 (F Fᵀ − I) F / ‖F Fᵀ − I‖_F / count.
    """

    @staticmethod
    def forward(ctx: Any, *factors: Tensor) -> Tensor:
        ctx.tall = [factor.shape[0] > factor.shape[1] for factor in factors]
        wide = [factor.T if tall else factor for factor, tall in zip(factors, ctx.tall, strict=True)]
        ctx.groups = [_measure(wide, places) for places in _places_by_shape(wide)]
        return torch.cat([norm_N for *_, norm_N in ctx.groups]).sum() / len(factors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        made: dict[int, Tensor] = {}
        for places, stacked_NRD, off_NRR, norm_N in ctx.groups:
            weight_N = 2 * grads[0] / len(ctx.tall) / norm_N.clamp_min(torch.finfo(norm_N.dtype).tiny)
            made.update(zip(places, torch.bmm(off_NRR * weight_N[:, None, None], stacked_NRD), strict=True))
        return tuple(made[place].T if tall else made[place] for place, tall in enumerate(ctx.tall))


def _places_by_shape(factors: list[Tensor]) -> list[list[int]]:
    places: dict[torch.Size, list[int]] = {}
    for place, factor in enumerate(factors):
        places.setdefault(factor.shape, []).append(place)
    return list(places.values())


def _measure(factors: list[Tensor], places: list[int]) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """Stack the factors at ``places``; compute F Fᵀ − I of each, and its Frobenius norm."""
    stacked_NRD = torch.stack([factors[place] for place in places])
    off_NRR = torch.bmm(stacked_NRD, stacked_NRD.mT)
    off_NRR.diagonal(dim1=1, dim2=2).sub_(1)
    return places, stacked_NRD, off_NRR, torch.linalg.matrix_norm(off_NRR)
