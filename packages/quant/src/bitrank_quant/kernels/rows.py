"""Passes over rows on a CPU: what stands between a model's products, each read and written once instead of
once an operation.

Softmax of masked scores, RMS norms, SwiGLU and rotary positions with their gradients, in fp32 and bf16; sums
are in fp32. Ask :func:`serves` first: elsewhere plain torch has to do it, and with ``BITRANK_KERNELS=0`` or
without a compiler too. Decoded weights are plain torch's to the last bit; these equal it to rounding, since
they round once where torch rounds after every operation. On the meta device, where memory is foretold, they
make what they would make on a CPU, without its numbers.
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
_GRAIN = 1 << 15  # numbers below which a second thread costs more than it does
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
    """Whether these can be worked on here: plain tensors of one of the two types on a CPU, or on paper, and a
    compiled library.
    """
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
    """Why there is no compiled library, as the end of a sentence; None where there is one. Compiles if need
    be.
    """
    built = _built()
    return built if isinstance(built, str) else None


def softmax_(scores_URS: Tensor, mask: Tensor | None, scale: float, length: int, heads: int) -> Tensor:
    """``softmax(scale · scores + mask)`` over the last axis, in place, of contiguous scores.

    Rows lie by sequence, by head (``heads`` of a sequence) and by position (``length`` of a head); ``mask``,
    in the type of the scores, is expanded to (sequences, 1, ``length``, keys). Raises ``RuntimeError``, as
    torch does, when it cannot be.
    """
    keys, rows = scores_URS.shape[-1], scores_URS.numel() // scores_URS.shape[-1]
    at, by_sequence, by_row = None, 0, 0
    if mask is not None:
        assert mask.dtype == scores_URS.dtype  # a cast could make its least number infinite
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
    """The gradient of the scores from that of their shares, in its place; both contiguous."""
    keys, rows = grad_URS.shape[-1], grad_URS.numel() // grad_URS.shape[-1]
    _call("bitrank_softmax_gradient", grad_URS, grad_URS.data_ptr(), shares_URS.data_ptr(), rows, keys, scale)
    return grad_URS


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``weight · x / √(mean x² + eps)`` over the last axis, and 1 / √(…) of each row in fp32, (…, 1). The
    weight is fp32.
    """
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
    """The gradient of x; ``scale`` as :func:`rms_norm` gave it."""
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
    """The gradients of ``gate``, in the place of ``grad`` where that is contiguous, and of ``up``."""
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    grad_up = torch.empty_like(up)
    pointers = (grad.data_ptr(), grad_up.data_ptr(), grad.data_ptr(), gate.data_ptr(), up.data_ptr())
    _call("bitrank_swiglu_gradient", gate, *pointers, gate.numel())
    return grad, grad_up


def rotate(x_BHTD: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> Tensor:
    """x by rotary positions (Su et al. 2021), halves of a head paired; ``cosine`` and ``sine`` are (B or 1,
    T, D).

    What comes is contiguous; with ``back``, the gradient of x from that of the result, it lies by position
    first, as x's product does.
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
    """With the numbers of a row side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _call(name: str, of: Tensor, *arguments: float | None) -> None:
    if of.device.type == "meta":
        return
    library = _built()
    assert not isinstance(library, str)  # serves has asked
    threads = torch.get_num_threads() if of.numel() >= _GRAIN else 1
    getattr(library, name)(*arguments, _KINDS[of.dtype], threads)


@cache
def _built() -> ctypes.CDLL | str:
    try:
        return bound(load(ROWS).library)
    except BuildError as reason:
        return str(reason)


def bound(library: ctypes.CDLL) -> ctypes.CDLL:
    """``library`` with the types of its functions told to ctypes."""
    for name, arguments in _ARGUMENTS.items():
        function: Any = getattr(library, name)
        function.argtypes, function.restype = (*arguments, _I, _I), None
    return library


class CompiledRows:
    """The passes as one value, which those who are handed it can copy and pickle, as a module cannot be."""

    serves = staticmethod(serves)
    softmax_ = staticmethod(softmax_)
    softmax_gradient_ = staticmethod(softmax_gradient_)
    rms_norm = staticmethod(rms_norm)
    rms_norm_gradient = staticmethod(rms_norm_gradient)
    swiglu = staticmethod(swiglu)
    swiglu_gradients_ = staticmethod(swiglu_gradients_)
    rotate = staticmethod(rotate)
