"""Autograd functions for adapted linear layers: base and low-rank product together, W frozen.

Shapes: (N, in) → (N, out). Thin (rank-sized) products use the compute dtype, sums are in place, gradients of
the factors are fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Decode = Callable[[], Tensor]
"""Returns the (out, in) matrix of a base layer in the compute dtype, valid until the next decode.

An autograd function calls it, multiplies by the result immediately and does not save it, because the next
decode overwrites the buffer.
"""
ADAPTER = "default"


def applies(decode: Decode | None) -> bool:
    """Whether a base layer multiplies by its decoded matrix in this call.

    A decoder may have a method of the same name, since some layers do so only in training.
    """
    return decode is not None and (not hasattr(decode, "applies") or decode.applies())


def adds_low_rank(layer: Any) -> bool:
    """Whether the adapter of ``layer`` adds ``scale · up(down(x))``, the formula of all fused forms.

    PEFT's variants, such as weight-decomposed adapters, and factors of another class compute something else.
    """
    if layer.lora_variant.get(ADAPTER) is not None:
        return False
    if hasattr(layer, "lora_E"):
        return True
    return all(type(part[ADAPTER]) is nn.Linear for part in (layer.lora_A, layer.lora_B))


def factors(layer: Any) -> tuple[Tensor, Tensor, float]:
    """``down`` (rank, in), ``up`` (out, rank) and their scale, for LoRA and for AdaLoRA's P Λ Q."""
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    if hasattr(layer, "lora_E"):
        # PEFT divides by the layer's nominal rank, which includes masked ranks, plus this constant.
        return down * layer.lora_E[ADAPTER], up, layer.scaling[ADAPTER] / (layer.r[ADAPTER] + 1e-5)
    return down.weight, up.weight, layer.scaling[ADAPTER]


class Adapted(torch.autograd.Function):
    """``x Wᵀ + b + scale · (x downᵀ) upᵀ`` over rows of x, W frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        decode: Decode,
        bias: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        scale: float,
    ) -> Tensor:
        out_NO, thin = product(x_NI, decode, bias, down_RI, up_OR, scale)
        ctx.save_for_backward(x_NI, *thin)
        ctx.decode, ctx.scale = decode, scale
        return out_NO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x_NI, *thin = ctx.saved_tensors
        grad_NR, grad_down, grad_up = thin_gradients(x_NI, thin, ctx.scale, grads[0])
        grad_x = (grads[0] @ ctx.decode()).addmm_(grad_NR, thin[1]) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_down, grad_up, None


class AddLowRank(torch.autograd.Function):
    """``base + scale · (x downᵀ) upᵀ`` over rows of x, for base layers with their own product."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, base_NO: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float
    ) -> Tensor:
        down_16, up_RO = down_RI.to(x_NI.dtype), scaled_transpose(up_OR, scale, x_NI.dtype)
        thin_NR = x_NI @ down_16.T
        ctx.save_for_backward(x_NI, thin_NR, down_16, up_RO)
        ctx.scale = scale
        return torch.addmm(base_NO, thin_NR, up_RO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None]:
        x_NI, *thin = ctx.saved_tensors
        grad_NR, grad_down, grad_up = thin_gradients(x_NI, thin, ctx.scale, grads[0])
        grad_x = grad_NR @ thin[1] if ctx.needs_input_grad[0] else None
        return grad_x, grads[0], grad_down, grad_up, None


def product(
    x_NI: Tensor, decode: Decode, bias: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Output (N, out) of the layer, and the tensors that its backward pass needs besides x.

    These are the thin product (N, rank), ``down`` (rank, in) and ``scale · up`` (rank, out).
    """
    down_16, up_RO = down_RI.to(x_NI.dtype), scaled_transpose(up_OR, scale, x_NI.dtype)
    thin_NR = x_NI @ down_16.T
    out_NO = F.linear(x_NI, decode(), None if bias is None else bias.to(x_NI.dtype))
    return out_NO.addmm_(thin_NR, up_RO), (thin_NR, down_16, up_RO)


def thin_gradients(
    x_NI: Tensor, thin: Sequence[Tensor], scale: float, grad_NO: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the thin product (N, rank), of ``down`` and of ``up``, the last two in fp32.

    ``thin`` is the second result of :func:`product`.
    """
    thin_NR, _, up_RO = thin
    grad_NR = grad_NO @ up_RO.T
    return grad_NR, (grad_NR.T @ x_NI).float(), up_gradient(thin_NR, grad_NO, scale)


def up_gradient(thin_NR: Tensor, grad_NO: Tensor, scale: float) -> Tensor:
    """Gradient of ``up`` (out, rank) in fp32, with the strides of ``up``.

    Autograd copies a gradient with other strides.
    """
    grad_up_OR = torch.empty((grad_NO.shape[1], thin_NR.shape[1]), dtype=torch.float32, device=grad_NO.device)
    return grad_up_OR.copy_((thin_NR.T @ grad_NO).T).mul_(scale)


def scaled_transpose(up_OR: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """``scale · up`` as a contiguous (rank, out) tensor.

    The backward pass multiplies by it four times as fast as by the transposed view of ``up``.
    """
    made_RO = torch.empty(up_OR.shape[::-1], dtype=dtype, device=up_OR.device)
    return torch.mul(up_OR.T, scale, out=made_RO)
