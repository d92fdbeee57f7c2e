"""The low-rank product in the compute dtype, as one autograd function.

PEFT casts the input to the adapter's fp32, multiplies in fp32 and casts back. Here parameters and their gradients stay fp32
but products run in the dtype of the input (bf16 on most machines), and only the input and the thin product are kept for the
backward pass. :func:`fuse` changes how adapted layers compute, not what they hold: saving, loading and merging are PEFT's.
In fp32 it equals PEFT's path to rounding; in bf16 it differs by bf16's rounding of the thin product.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from bitrank_adapters.controllers import adapted

_ADAPTER = "default"


def fuse(model: PeftModel) -> None:
    """Let every adapted layer of ``model`` use the fused product. Layers with adapter dropout keep PEFT's path."""
    for _, layer in adapted(model):
        if isinstance(layer.lora_dropout[_ADAPTER], torch.nn.Identity):
            layer.forward = partial(_forward, layer, layer.forward)


def _forward(layer: Any, plain: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if layer.disable_adapters or layer.merged or args or kwargs:
        return plain(x, *args, **kwargs)
    down_RI, up_OR, scale = _factors(layer)
    base = layer.base_layer(x)
    rows = _LowRank.apply(x.reshape(-1, x.shape[-1]), base.reshape(-1, base.shape[-1]), down_RI, up_OR, scale)
    return rows.view(base.shape)


def _factors(layer: Any) -> tuple[Tensor, Tensor, float]:
    """(rank, in), (out, rank) and the factor on their product, for LoRA and for AdaLoRA's P Λ Q."""
    down, up = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
    if hasattr(layer, "lora_E"):
        # PEFT divides by the initial rank plus this constant.
        return down * layer.lora_E[_ADAPTER], up, layer.scaling[_ADAPTER] / (layer.r[_ADAPTER] + 1e-5)
    return down.weight, up.weight, layer.scaling[_ADAPTER]


class _LowRank(torch.autograd.Function):
    """``base + scale · (x downᵀ) upᵀ`` over rows."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, base_NO: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
        down_16, up_16 = down_RI.to(x_NI.dtype), (up_OR * scale).to(x_NI.dtype)
        thin_NR = x_NI @ down_16.T
        ctx.save_for_backward(x_NI, thin_NR, down_16, up_16)
        ctx.scale = scale
        return torch.addmm(base_NO, thin_NR, up_16.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None]:
        x_NI, thin_NR, down_16, up_16 = ctx.saved_tensors
        grad_NO = grads[0]
        grad_NR = grad_NO @ up_16
        grad_x = grad_NR @ down_16 if ctx.needs_input_grad[0] else None
        grad_down = (grad_NR.T @ x_NI).float()
        grad_up = (grad_NO.T @ thin_NR).float() * ctx.scale
        return grad_x, grad_NO, grad_down, grad_up, None
