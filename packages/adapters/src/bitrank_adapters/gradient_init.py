"""LoRA-GA and GoRA: adapters that start from the gradient G = ∂loss/∂W of their matrices.

LoRA-GA (Wang et al. 2024) chooses A and B so that the first step of the product follows a step of full
fine-tuning: from the singular triplets G = U Σ Vᵀ, A has the first r rows of Vᵀ and B the columns r to 2r of
U, both times d_out^¼/√γ with γ = 16, and s · B A is taken out of the matrix (the authors' code, direction
``ArB2r`` and scale ``stable``). Vector r + i of U meets vector i of V, so the product depends on the signs of
the triplets: the largest entry of each vector of V is positive. A resumed run and an export compute the part
again, and must find the same one.

GoRA (He et al. 2025) starts as a step of gradient descent that is projected on the rows of a random A:
s · B A = −γ √(in/r) G A⁺ A, with A⁺ the pseudo-inverse. The rows of A span r of ``in`` dimensions, so the
factor √(in/r) gives the product about γ times the norm of G (the paper's ξ = γ √in/α for s = α/√r; the
authors' code with ``scale_by_lr``). The base stays as it is, so the outputs change by that step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from torch import Tensor

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.lowrank import reproducible_triplets
from bitrank_adapters.part_start import Part, PartStart
from bitrank_adapters.plans import RankPlan, positive_ranks
from bitrank_adapters.rank_hooks import adapted
from bitrank_adapters.residual_init import adapter_of
from bitrank_adapters.scales import AdapterScale, effective_scale
from bitrank_adapters.weight_decomposed import reset_magnitude

_ADAPTER = "default"
GORA_STEP = 0.05  # GoRA's γ: the norm of the first product relative to that of the gradient


class GradientStart(PartStart):
    """LoRA-GA for the matrices of ``ranks``, whose adapters have ``scale``.

    ``gradients`` returns the gradient (out, in) of a matrix by its name. Raises :class:`AdapterError` for a
    gradient of another shape, and for a matrix with fewer than 2 r rows or columns.
    """

    def __init__(
        self,
        ranks: RankPlan,
        gradients: Callable[[str], Tensor],
        scale: AdapterScale,
        *,
        gamma: float = 16.0,
    ) -> None:
        super().__init__(ranks)
        self._gradients, self._scale, self._gamma = gradients, scale, gamma

    def _part(self, name: str, whole_OI: Tensor, rank: int) -> Part:
        if 2 * rank > min(whole_OI.shape):
            raise AdapterError(
                f"the start by LoRA-GA uses 2 × {rank} singular vectors of a gradient, and {name!r} of shape "
                f"{tuple(whole_OI.shape)} has {min(whole_OI.shape)}; give it a rank of "
                f"{min(whole_OI.shape) // 2} or less"
            )
        gradient_OI = _of_shape(self._gradients(name), name, tuple(whole_OI.shape)).to(whole_OI.device)
        factors = reproducible_triplets(gradient_OI, 2 * rank)
        length = len(whole_OI) ** 0.25 / self._gamma**0.5 * self._scale.of(rank) ** 0.5
        return Part(length * factors.left_OR[:, rank:], length * factors.right_RI[:rank])


class GradientStep:
    """GoRA's start for the matrices of ``ranks``.

    ``gradients`` returns the gradient (out, in) of a matrix by its name. ``gamma`` is the norm of s · B A
    relative to the gradient's. A is that of the default start.
    """

    def __init__(
        self,
        ranks: RankPlan,
        gradients: Callable[[str], Tensor],
        *,
        gamma: float = GORA_STEP,
    ) -> None:
        self._ranks = positive_ranks(ranks)
        self._gradients, self._gamma = gradients, gamma

    def split(self, name: str, weight_OI: Tensor, stored: Callable[[Tensor], Tensor]) -> Tensor:
        """``weight_OI`` itself: the whole matrix is stored."""
        return weight_OI

    def write(self, model: PeftModel) -> None:
        """Set B of every adapter in ``model``: B = −(γ/s) √(in/r) G Aᵀ (A Aᵀ)⁻¹.

        Raises :class:`AdapterError` if a matrix has no adapter, one with singular values of its own, or a
        gradient of another shape.
        """
        layers = dict(adapted(model))
        for name in self._ranks:
            layer = adapter_of(layers, name)
            refuse_triplets(layer)
            down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            gradient_OI = _of_shape(self._gradients(name), name, (len(up), down.shape[1]))
            with torch.no_grad():
                inverse_IR = torch.linalg.pinv(down.detach().cpu().double())
                factor = self._gamma * (down.shape[1] / len(down)) ** 0.5 / effective_scale(layer)
                up.copy_(-factor * (gradient_OI.cpu().double() @ inverse_IR))
                reset_magnitude(layer)


def refuse_triplets(layer: object) -> None:
    """Raise :class:`AdapterError` for an adapter with singular values, whose ranks change in training."""
    if hasattr(layer, "lora_E"):
        raise AdapterError(
            "this start sets the ranks before training, and these adapters change them in training; use the "
            "init default, loftq or lq-lora with adaptive ranks"
        )


def _of_shape(gradient_OI: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    if tuple(gradient_OI.shape) != shape:
        raise AdapterError(
            f"the gradient of {name!r} has shape {tuple(gradient_OI.shape)}, the matrix is {shape}"
        )
    return gradient_OI
