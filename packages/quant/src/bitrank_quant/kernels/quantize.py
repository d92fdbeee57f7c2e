"""Compiled choice of codes on a CPU: errors of scales, and the column loops of GPTQ and coordinate descent.

In plain torch, GPTQ's loop over columns is a dozen small operations for each column of each matrix, and a
search over scales is ten passes over the weights for each candidate. Check :func:`serves` first: plain torch
has to compute where it is False, as with ``BITRANK_KERNELS=0`` or without a compiler. The column loops
compute in the order of plain torch and give its numbers; errors are summed in another order.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bitrank_quant import kernels
from bitrank_quant.kernels.build import QUANTIZE, BuildError, load

_PARALLEL_FROM = 1 << 15  # below this number of elements a second thread costs more than it saves
_P, _N, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_POINTS = (_F, _F, _P, _N)
_ARGUMENTS = {
    "bitrank_errors": (_P, _P, _P, _P, _N, _N, _N, _N, *_POINTS, _I, _P),
    "bitrank_feedback": (_P, _N, _P, _N, _P, _P, _N, _N, *_POINTS, _I, _P, _P),
    "bitrank_descend": (_P, _N, _P, _P, _N, _P, _P, _N, _N, _N, _N, *_POINTS, _I, _P, _P),
}


@dataclass(frozen=True)
class Points:
    """The points of a grid, whose values are ``offset + scale · point``.

    They are the whole numbers from ``low`` to ``high``, or the at most 16 ascending fp32 entries of ``book``.
    """

    low: float = 0.0
    high: float = 0.0
    book: Tensor | None = None

    def arguments(self) -> tuple[float | int | None, ...]:
        if self.book is None:
            return self.low, self.high, None, 0
        return self.low, self.high, self.book.data_ptr(), len(self.book)


def serves(*tensors: Tensor) -> bool:
    """Whether the tensors are supported: plain fp32 on the CPU, with a compiled library."""
    # Subclasses (fake, functional, distributed tensors) have no memory of their own to read.
    plain = all(type(t) is Tensor and t.dtype is torch.float32 and t.is_cpu for t in tensors)
    return plain and not torch.compiler.is_compiling() and not kernels.switched_off() and missing() is None


def missing() -> str | None:
    """The reason why there is no compiled library; None if there is one. Compiles if necessary."""
    built = _built()
    return built if isinstance(built, str) else None


def errors(
    weights_RGB: Tensor, column_weights_GB: Tensor, scales_CRG: tuple[Tensor, ...], points: Points
) -> Tensor:
    """Σ_b column_weight_b (w_b − nearest value)² of each group for C candidate scales, (C, R, G).

    ``scales_CRG`` are the scale and, if the grid has one, the offset.
    """
    rows, groups, width = weights_RGB.shape
    weights_RGB, column_weights_GB = weights_RGB.contiguous(), column_weights_GB.contiguous()
    scale_CRG, offset_CRG = _two(scales_CRG)
    made = torch.empty_like(scale_CRG)
    _function("bitrank_errors")(
        weights_RGB.data_ptr(),
        column_weights_GB.data_ptr(),
        scale_CRG.data_ptr(),
        None if offset_CRG is None else offset_CRG.data_ptr(),
        len(scale_CRG),
        rows,
        groups,
        width,
        *points.arguments(),
        _threads(len(scale_CRG) * weights_RGB.numel()),
        made.data_ptr(),
    )
    return made


def feedback_(
    weights_OB: Tensor, upper_BB: Tensor, scales_O: tuple[Tensor, ...], points: Points
) -> tuple[Tensor, Tensor]:
    """GPTQ's loop over the columns of one group: points (O, B), as whole numbers in fp32 (indices of a book),
    and each column's error divided by the diagonal of ``upper_BB`` (O, B).

    ``weights_OB`` changes in place: later columns take over the errors of those before.
    """
    rows, width = weights_OB.shape
    assert weights_OB.stride(1) == 1
    upper_BB = upper_BB.contiguous()
    scale_O, offset_O = _two(scales_O)
    found_OB, error_OB = weights_OB.new_empty(rows, width), weights_OB.new_empty(rows, width)
    _function("bitrank_feedback")(
        weights_OB.data_ptr(),
        weights_OB.stride(0),
        upper_BB.data_ptr(),
        upper_BB.stride(0),
        scale_O.data_ptr(),
        None if offset_O is None else offset_O.data_ptr(),
        rows,
        width,
        *points.arguments(),
        _threads(rows * width),
        found_OB.data_ptr(),
        error_OB.data_ptr(),
    )
    return found_OB, error_OB


def descend_(
    values_OP: Tensor,
    pull_OP: Tensor,
    moments_PP: Tensor,
    scales_OG: tuple[Tensor, ...],
    width: int,
    points: Points,
) -> tuple[Tensor, Tensor]:
    """Coordinate descent over a panel of P columns, in groups of ``width``: the points (O, P) as in
    :func:`feedback_`, and the changes (O, P) of the values.

    ``values_OP`` changes in place. ``pull_OP`` is minus half the gradient of the error by the values; it is
    overwritten.
    """
    rows, columns = values_OP.shape
    assert values_OP.stride(1) == 1 and pull_OP.is_contiguous()
    moments_PP = moments_PP.contiguous()
    scale_OG, offset_OG = _two(scales_OG)
    found_OP, change_OP = torch.empty_like(pull_OP), torch.empty_like(pull_OP)
    _function("bitrank_descend")(
        values_OP.data_ptr(),
        values_OP.stride(0),
        pull_OP.data_ptr(),
        moments_PP.data_ptr(),
        moments_PP.stride(0),
        scale_OG.data_ptr(),
        None if offset_OG is None else offset_OG.data_ptr(),
        scale_OG.shape[1],
        rows,
        columns,
        width,
        *points.arguments(),
        _threads(rows * columns),
        found_OP.data_ptr(),
        change_OP.data_ptr(),
    )
    return found_OP, change_OP


def _two(scales: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
    """Contiguous scale and offset."""
    return scales[0].contiguous(), scales[1].contiguous() if len(scales) > 1 else None


def _threads(numbers: int) -> int:
    return torch.get_num_threads() if numbers >= _PARALLEL_FROM else 1


def _function(name: str) -> Any:
    library = _built()
    assert not isinstance(library, str)  # checked by serves
    return getattr(library, name)


@cache
def _built() -> ctypes.CDLL | str:
    try:
        library = load(QUANTIZE).library
    except BuildError as reason:
        return str(reason)
    for name, arguments in _ARGUMENTS.items():
        function: Any = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library
