"""Norm layers that compute in fp32 whatever dtype flows through (k-bit preparation, as in QLoRA).

Their frozen weights are kept in fp32, their input and output stay in the model's dtype. Two ways give the same numbers: the plain
one casts, normalises and casts back; the fused one does it in a pass and keeps only the 16-bit input for the backward pass. RMS norms take
compiled passes where there are some.
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
    """Whether ``module`` is a LayerNorm or one of the many classes called RMSNorm."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


def norms_in_fp32(model: nn.Module) -> None:
    """Weights of every norm in fp32, and fp32 inside it."""
    for module in model.modules():
        if is_norm(module):
            module.float()
            before: Any = vars(module).get("forward")
            if isinstance(before, partial) and before.func is _plain:
                continue
            module.forward = partial(_plain, before or partial(type(module).forward, module))  # type: ignore[method-assign]


def fuse_norms(model: nn.Module, rows: Rows | None = None) -> None:
    """One pass for every frozen norm on a CPU; elsewhere, and where weights are trained, the plain way stays."""
    for module in model.modules():
        if not is_norm(module) or any(p.requires_grad or p.device.type != "cpu" for p in module.parameters()):
            continue
        if not _is_own(module):
            continue
        if (
            type(module).forward is nn.LayerNorm.forward
        ):  # some subclasses add one to the weight, or normalise another axis
            module.forward = partial(_layer_norm, module)  # type: ignore[method-assign,arg-type]
        elif type(module).__name__ in _LLAMA_LIKE and type(module).__module__.startswith(
            "transformers.models."
        ):
            module.forward = partial(_rms_norm, module, rows)  # type: ignore[method-assign]


def _is_own(module: nn.Module) -> bool:
    """Whether the forward pass of ``module`` is that of its class, in fp32 or not; another one may have been
    put on it before."""
    forward: Any = vars(module).get("forward")
    if forward is None:
        return True
    inner = forward.args[0] if isinstance(forward, partial) and forward.func is _plain else None
    return isinstance(inner, partial) and inner.func is type(module).forward


# Their formula is weight · x / √(mean x² + eps); others add one to the weight (Gemma) or differ in kind.
_LLAMA_LIKE = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "T5LayerNorm")


def _plain(forward: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    out: Tensor = forward(x.float(), *args, **kwargs)
    return out.to(x.dtype)


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    # torch's CPU kernel takes 16-bit rows with fp32 weights and computes in fp32.
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
    """``w · x / √(mean x² + eps)`` over the last axis (Zhang and Sennrich 2019); gradient for x alone."""

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
