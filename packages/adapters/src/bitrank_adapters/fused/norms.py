"""Norm layers that compute in fp32 for inputs of any dtype (k-bit preparation, as in QLoRA).

Frozen weights are fp32; input and output keep the model's dtype. Both implementations give the same numbers:
the plain one casts, normalizes and casts back; the fused one does so in one pass and saves only the 16-bit
input for the backward pass. RMS norms use compiled row kernels if available.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bitrank_adapters.fused.row_kernels import Rows


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a LayerNorm or of a class whose name ends in RMSNorm."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


def norms_in_fp32(model: nn.Module) -> None:
    """Convert the weights and the computation of every norm of ``model`` to fp32, in place."""
    for module in model.modules():
        if is_norm(module):
            module.float()
            before: Any = vars(module).get("forward")
            if isinstance(before, partial) and before.func is _plain:
                continue
            original = before or partial(type(module).forward, module)
            module.forward = partial(_plain, original)  # type: ignore[method-assign]


def fuse_norms(model: nn.Module, rows: Rows | None = None) -> None:
    """Fuse every frozen norm on the CPU, in place; trainable norms and other devices stay plain."""
    for module in model.modules():
        if not is_norm(module) or any(p.requires_grad or p.device.type != "cpu" for p in module.parameters()):
            continue
        if not _is_own(module):
            continue
        if (
            type(module).forward is nn.LayerNorm.forward
        ):  # some subclasses add one to the weight, or normalize another axis
            module.forward = partial(_layer_norm, module)  # type: ignore[method-assign,arg-type]
        elif type(module).__name__ in _LLAMA_LIKE and type(module).__module__.startswith(
            "transformers.models."
        ):
            module.forward = partial(_rms_norm, module, rows)  # type: ignore[method-assign]


def _is_own(module: nn.Module) -> bool:
    """Whether ``module`` uses the forward pass of its class, possibly wrapped for fp32.

    False if another forward pass was set on the instance before.
    """
    forward: Any = vars(module).get("forward")
    if forward is None:
        return True
    inner = forward.args[0] if isinstance(forward, partial) and forward.func is _plain else None
    return isinstance(inner, partial) and inner.func is type(module).forward


# Classes with the formula weight · x / √(mean x² + eps); others add one to the weight (Gemma) or differ in
# kind.
_LLAMA_LIKE = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "T5LayerNorm")


def _plain(forward: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    out: Tensor = forward(x.float(), *args, **kwargs)
    return out.to(x.dtype)


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    # torch's CPU kernel accepts 16-bit inputs with fp32 weights and computes in fp32.
    return F.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)


def _rms_norm(module: Any, rows: Rows | None, x: Tensor) -> Tensor:
    weight = module.weight
    compiled = (
        rows
        if rows is not None and rows.serves(x) and rows.serves(weight) and weight.dtype == torch.float32
        else None
    )
    out: Tensor = _RmsNorm.apply(x, module.weight, module.variance_epsilon, compiled)
    return out


class _RmsNorm(torch.autograd.Function):
    """``w · x / √(mean x² + eps)`` over the last axis (Zhang and Sennrich 2019); only x gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, rows: Rows | None) -> Tensor:
        made, scale = rows.rms_norm(x, weight_D, eps) if rows else _normed(x, weight_D, eps)
        ctx.save_for_backward(x, scale, weight_D)
        ctx.rows = rows
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, scale, weight_D = ctx.saved_tensors
        if ctx.rows:
            return ctx.rows.rms_norm_gradient(grads[0], x, weight_D, scale), None, None, None
        unit = x.float().mul_(scale)
        grad = grads[0].float().mul_(weight_D)
        along = torch.linalg.vecdot(grad, unit).unsqueeze_(-1).div_(x.shape[-1])
        return grad.addcmul_(unit, along, value=-1).mul_(scale).to(x.dtype), None, None, None


def _normed(x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x_32 = x.float()
    scale = (
        torch.linalg.vector_norm(x_32, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    )
    return torch.mul(x_32, scale).mul_(weight_D).to(x.dtype), scale
