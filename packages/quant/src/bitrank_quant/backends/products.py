"""Products with an encoded matrix in plain torch, forward and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from bitrank_quant.backends.reference import QuantWeight

# LLM.int8(): input features with a larger magnitude stay in 16 bits (Dettmers et al. 2022, section 3.2).
_OUTLIER = 6.0


class DecodedLinear(torch.autograd.Function):
    """``y = x Wᵀ + b`` with W decoded in both passes instead of saved."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, quantized: QuantWeight, bias: Tensor | None) -> Tensor:
        ctx.quantized = quantized
        return product(input, quantized, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return input_gradient(grads[0], ctx.quantized), None, None


def product(input: Tensor, quantized: QuantWeight, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b`` of an input (N, in), with W decoded some rows at a time."""
    parts = quantized.parts(input.dtype)
    if len(parts) == 1:
        return F.linear(input, quantized.decode(input.dtype), bias)
    y_NO = input.new_empty(len(input), quantized.shape[0])
    for part in parts:
        torch.mm(input, quantized.decode_part(part, input.dtype).T, out=y_NO[:, part])
    return y_NO if bias is None else y_NO.add_(bias)


def input_gradient(grad_NO: Tensor, quantized: QuantWeight) -> Tensor:
    """∂/∂x of ``y = x Wᵀ``; partial sums are accumulated in fp32."""
    parts = quantized.parts(grad_NO.dtype)
    if len(parts) == 1:
        return grad_NO @ quantized.decode(grad_NO.dtype)
    total_NI = grad_NO.new_zeros(len(grad_NO), quantized.shape[1], dtype=torch.float32)
    for part in parts:
        total_NI += grad_NO[:, part] @ quantized.decode_part(part, grad_NO.dtype)
    return total_NI.to(grad_NO.dtype)


class LlmInt8(torch.autograd.Function):
    """LLM.int8(): int8 × int8 products, 16-bit ones for outlier features; gradient by the decoded matrix."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, quantized: QuantWeight, bias: Tensor | None) -> Tensor:
        ctx.quantized = quantized
        x_NI = input.float()
        outlier_I = (x_NI.abs() > _OUTLIER).any(0)
        inner_NI = x_NI.masked_fill(outlier_I, 0.0)
        scale_N = inner_NI.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        codes_NI = (inner_NI / scale_N[:, None]).round()
        parts = quantized.tensors
        # Integer sums up to 127² · in are exact in fp32 below 2²⁴, that is for about 1,000 features, and
        # nearly exact beyond.
        y_NO = (codes_NI @ parts["codes"].float().T) * scale_N[:, None] * parts["scale"]
        if outlier_I.any():
            y_NO += x_NI[:, outlier_I] @ quantized.decode(torch.float32)[:, outlier_I].T
        y_NO = y_NO.to(input.dtype)
        return y_NO if bias is None else y_NO + bias

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return grads[0] @ ctx.quantized.decode(grads[0].dtype), None, None
