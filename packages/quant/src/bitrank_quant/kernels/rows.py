"""Compiled row passes on a CPU: the operations between a model's matrix products, fused.

Softmax of masked scores, RMS norms, SwiGLU and rotary positions with their gradients, in fp32 and bf16 with
fp32 sums. Each reads and writes its rows once, instead of once per operation. Check :func:`serves` first:
otherwise plain torch has to compute, as with ``BITRANK_KERNELS=0`` or without a compiler. Results equal plain
torch's up to rounding, since these round once where torch rounds after every operation. On the meta device
they only allocate their outputs, so that memory can be predicted.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bitrank_quant import kernels
from bitrank_quant.kernels.build import ROWS, BuildError, load

_KINDS = {torch.float32: 0, torch.bfloat16: 1}  # the enum of vectors.h
_PARALLEL_FROM = 1 << 15  # below this number of elements a second thread costs more than it saves
_P, _N, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_ARGUMENTS = {
    "bitrank_softmax": (_P, _N, _N, _N, _N, _F, _P, _N, _N),
    "bitrank_softmax_gradient": (_P, _P, _N, _N, _F),
    "bitrank_rms": (_P, _P, _N, _N, _P, _F, _P),
    "bitrank_rms_gradient": (_P, _P, _P, _N, _N, _P, _P),
    "bitrank_swiglu": (_P, _P, _P, _N),
    "bitrank_swiglu_gradient": (_P, _P, _P, _P, _P, _N),
    "bitrank_rotate": (_P, _N, _N, _N, _P, _N, _N, _N, _P, _P, _N, _N, _N, _N, _N, _N, _I),
}


def serves(*tensors: Tensor) -> bool:
    """Whether the tensors are supported: plain fp32 or bf16 on CPU or meta, with a compiled library."""
    kind = tensors[0].dtype
    if kind not in _KINDS or torch.compiler.is_compiling():
        return False
    # Subclasses (fake, functional, distributed tensors) have no memory of their own to read.
    plain = all(
        type(t) in (Tensor, torch.nn.Parameter) and t.dtype == kind and t.device.type in ("cpu", "meta")
        for t in tensors
    )
    return plain and not kernels.switched_off() and missing() is None


def missing() -> str | None:
    """The reason why there is no compiled library; None if there is one. Compiles if necessary."""
    built = _built()
    return built if isinstance(built, str) else None


def softmax_(scores_URS: Tensor, mask: Tensor | None, scale: float, length: int, heads: int) -> Tensor:
    """``softmax(scale · scores + mask)`` over the last axis of contiguous scores, in place.

    Rows are ordered by sequence, head (``heads`` per sequence) and position (``length`` per head). ``mask``
    has the dtype of the scores and is expanded to (sequences, 1, ``length``, keys). Raises ``RuntimeError``,
    as torch does, if it cannot be.
    """
    keys, rows = scores_URS.shape[-1], scores_URS.numel() // scores_URS.shape[-1]
    at, by_sequence, by_row = None, 0, 0
    if mask is not None:
        assert mask.dtype == scores_URS.dtype  # a cast could turn its lowest value into -inf
        mask = _dense(mask.expand(rows // (heads * length), 1, length, keys))
        at, by_sequence, by_row = mask.data_ptr(), mask.stride(0), mask.stride(2)
    _call(
        "bitrank_softmax",
        scores_URS,
        scores_URS.data_ptr(),
        rows,
        keys,
        length,
        heads,
        scale,
        at,
        by_sequence,
        by_row,
    )
    return scores_URS


def softmax_gradient_(grad_URS: Tensor, shares_URS: Tensor, scale: float) -> Tensor:
    """Gradient of the scores from that of the softmax, in place; both are contiguous."""
    keys, rows = grad_URS.shape[-1], grad_URS.numel() // grad_URS.shape[-1]
    _call("bitrank_softmax_gradient", grad_URS, grad_URS.data_ptr(), shares_URS.data_ptr(), rows, keys, scale)
    return grad_URS


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``weight · x / √(mean x² + eps)`` over the last axis, and 1 / √(…) as fp32 (…, 1); fp32 weight."""
    x, size = x.contiguous(), x.shape[-1]
    made, scale = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    _call(
        "bitrank_rms",
        x,
        made.data_ptr(),
        x.data_ptr(),
        scale.numel(),
        size,
        weight_D.data_ptr(),
        eps,
        scale.data_ptr(),
    )
    return made, scale


def rms_norm_gradient(grad: Tensor, x: Tensor, weight_D: Tensor, scale: Tensor) -> Tensor:
    """Gradient of x; ``scale`` is the second result of :func:`rms_norm`."""
    grad, x = grad.contiguous(), x.contiguous()
    made = torch.empty_like(x)
    pointers = (made.data_ptr(), grad.data_ptr(), x.data_ptr())
    _call(
        "bitrank_rms_gradient",
        x,
        *pointers,
        scale.numel(),
        x.shape[-1],
        weight_D.data_ptr(),
        scale.data_ptr(),
    )
    return made


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) · up``."""
    gate, up = gate.contiguous(), up.contiguous()
    made = torch.empty_like(gate)
    _call("bitrank_swiglu", gate, made.data_ptr(), gate.data_ptr(), up.data_ptr(), gate.numel())
    return made


def swiglu_gradients_(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``gate`` and ``up``; that of ``gate`` overwrites ``grad`` if that is contiguous."""
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    grad_up = torch.empty_like(up)
    pointers = (grad.data_ptr(), grad_up.data_ptr(), grad.data_ptr(), gate.data_ptr(), up.data_ptr())
    _call("bitrank_swiglu_gradient", gate, *pointers, gate.numel())
    return grad, grad_up


def rotate(x_BHTD: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> Tensor:
    """Rotary positions (Su et al. 2021) with the halves of a head paired; angles are (B or 1, T, D).

    The result is contiguous. With ``back``, computes the gradient of x from that of the result, in memory
    order (B, T, H, D), as the product that made x needs it.
    """
    x_BHTD, cosine, sine = _dense(x_BHTD), cosine.contiguous(), sine.contiguous()
    batch, heads, length, size = x_BHTD.shape
    made = (
        x_BHTD.new_empty(batch, length, heads, size).transpose(1, 2)
        if back
        else x_BHTD.new_empty(x_BHTD.shape)
    )
    angles = (cosine.data_ptr(), sine.data_ptr(), cosine.stride(0) if len(cosine) > 1 else 0, size)
    arguments = (made.data_ptr(), *made.stride()[:3], x_BHTD.data_ptr(), *x_BHTD.stride()[:3], *angles)
    _call("bitrank_rotate", x_BHTD, *arguments, batch, heads, length, size, int(back))
    return made


def _dense(tensor: Tensor) -> Tensor:
    """Make the elements of a row contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _call(name: str, of: Tensor, *arguments: float | None) -> None:
    if of.device.type == "meta":
        return
    library = _built()
    assert not isinstance(library, str)  # checked by serves
    threads = torch.get_num_threads() if of.numel() >= _PARALLEL_FROM else 1
    getattr(library, name)(*arguments, _KINDS[of.dtype], threads)


@cache
def _built() -> ctypes.CDLL | str:
    try:
        return with_types(load(ROWS).library)
    except BuildError as reason:
        return str(reason)


def with_types(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the argument types of the functions of ``library`` to ctypes."""
    for name, arguments in _ARGUMENTS.items():
        function: Any = getattr(library, name)
        function.argtypes, function.restype = (*arguments, _I, _I), None
    return library


class CompiledRows:
    """The row passes as one value that can be copied and pickled, unlike a module."""

    serves = staticmethod(serves)
    softmax_ = staticmethod(softmax_)
    softmax_gradient_ = staticmethod(softmax_gradient_)
    rms_norm = staticmethod(rms_norm)
    rms_norm_gradient = staticmethod(rms_norm_gradient)
    swiglu = staticmethod(swiglu)
    swiglu_gradients_ = staticmethod(swiglu_gradients_)
    rotate = staticmethod(rotate)
