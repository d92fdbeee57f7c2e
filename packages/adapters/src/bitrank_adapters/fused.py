"""An adapted layer as one autograd function: base and low-rank product together, nothing saved but what backward needs.

PEFT computes ``base(x) + scale · up(down(x))`` as separate nodes of the graph, each with its own copies. Here W is frozen, so its
only gradient is the one for x; the thin products run in the compute dtype; sums are made in place; x and the thin product are all
that is kept. A quantized W is decoded in both passes and kept in neither. :func:`fuse` changes how adapted layers compute, not
what they hold: saving, loading and merging are PEFT's. In fp32 it equals PEFT's path to rounding; in bf16 it differs by bf16's
rounding of the thin product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_adapters.controllers import adapted
from bitrank_adapters.norms import fuse_norms

Decode = Callable[[], Tensor]
_ADAPTER = "default"


def plain_decoder(layer: nn.Module) -> Decode | None:
    """The decoder of unquantized models: the weight of an ``nn.Linear`` as it is."""
    return (lambda: layer.weight) if type(layer) is nn.Linear else None


def fuse(model: PeftModel, decoder: Callable[[nn.Module], Decode | None] = plain_decoder) -> None:
    """Let every adapted layer and every norm of ``model`` use its fused form.

    ``decoder`` tells how the (out, in) matrix of a base layer is decoded into the compute dtype; None when the layer's product is
    not that of a decoded matrix. Such layers keep their own base product, and layers with adapter dropout keep PEFT's path.
    """
    for _, layer in adapted(model):
        if isinstance(layer.lora_dropout[_ADAPTER], torch.nn.Identity):
            layer.forward = partial(_forward, layer, layer.forward, decoder(layer.base_layer))
    fuse_norms(model)


def _forward(layer: Any, plain: Any, decode: Decode | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if layer.disable_adapters or layer.merged or args or kwargs:
        out: Tensor = plain(x, *args, **kwargs)
        return out
    down_RI, up_OR, scale = _factors(layer)
    rows_NI = x.reshape(-1, x.shape[-1])
    if decode is None:
        rows_NO = _LowRank.apply(rows_NI, layer.base_layer(rows_NI), down_RI, up_OR, scale)
    else:
        rows_NO = _Adapted.apply(rows_NI, decode, layer.base_layer.bias, down_RI, up_OR, scale)
    return rows_NO.view(*x.shape[:-1], rows_NO.shape[-1])


def _factors(layer: Any) -> tuple[Tensor, Tensor, float]:
    """(rank, in), (out, rank) and the factor on their product, for LoRA and for AdaLoRA's P Λ Q."""
    down, up = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
    if hasattr(layer, "lora_E"):
        # PEFT divides by the initial rank plus this constant.
        return down * layer.lora_E[_ADAPTER], up, layer.scaling[_ADAPTER] / (layer.r[_ADAPTER] + 1e-5)
    return down.weight, up.weight, layer.scaling[_ADAPTER]


class _Adapted(torch.autograd.Function):
    """``x Wᵀ + b + scale · (x downᵀ) upᵀ`` over rows, W frozen."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, decode: Decode, bias: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
        down_16, up_RO = down_RI.to(x_NI.dtype), _turned(up_OR, scale, x_NI.dtype)
        thin_NR = x_NI @ down_16.T
        out_NO = F.linear(x_NI, decode(), None if bias is None else bias.to(x_NI.dtype))
        ctx.save_for_backward(x_NI, thin_NR, down_16, up_RO)
        ctx.decode, ctx.scale = decode, scale
        return out_NO.addmm_(thin_NR, up_RO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        grad_NO = grads[0]
        grad_NR, grad_down, grad_up = _thin_gradients(ctx, grad_NO)
        grad_x = (grad_NO @ ctx.decode()).addmm_(grad_NR, ctx.saved_tensors[2]) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_down, grad_up, None


class _LowRank(torch.autograd.Function):
    """``base + scale · (x downᵀ) upᵀ`` over rows, for base layers that multiply in their own way."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, base_NO: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
        down_16, up_RO = down_RI.to(x_NI.dtype), _turned(up_OR, scale, x_NI.dtype)
        thin_NR = x_NI @ down_16.T
        ctx.save_for_backward(x_NI, thin_NR, down_16, up_RO)
        ctx.scale = scale
        return torch.addmm(base_NO, thin_NR, up_RO)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None]:
        grad_NR, grad_down, grad_up = _thin_gradients(ctx, grads[0])
        grad_x = grad_NR @ ctx.saved_tensors[2] if ctx.needs_input_grad[0] else None
        return grad_x, grads[0], grad_down, grad_up, None


def _thin_gradients(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the thin product (N, rank), of ``down`` and of ``up``; the last two in fp32."""
    x_NI, thin_NR, _, up_RO = ctx.saved_tensors
    grad_NR = grad_NO @ up_RO.T
    return grad_NR, (grad_NR.T @ x_NI).float(), (thin_NR.T @ grad_NO).T.float() * ctx.scale


def _turned(up_OR: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """``scale · up`` as (rank, out), rows whole: the backward pass multiplies by it four times as fast as by columns of ``up``."""
    return (up_OR.T * scale).to(dtype).contiguous()
