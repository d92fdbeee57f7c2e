"""Compiled decoding: one small C file behind six functions, and Triton kernels on a GPU.

Each function returns the decoded tensor, or None if plain torch has to decode: on other devices, under a
tracing compiler (which fuses the decoding itself), for other output dtypes, without a C compiler, and with
``BITRANK_KERNELS=0``. On a CPU both paths give bit-identical results; on a GPU they may differ in the last
digit, where a fused multiply-add rounds once (:mod:`~bitrank_quant.kernels.device`).

A training step decodes hundreds of small matrices, some within 20 µs. The checks before each call are
therefore few and cheap: no copies of scales, no views, no look-up in the environment.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bitrank_quant.kernels import device
from bitrank_quant.kernels.build import BuildError, Built, load
from bitrank_quant.packing import packed_bytes

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the enum of decode.c
_PLAIN = (Tensor, torch.nn.Parameter)
_PARALLEL_FROM = 1 << 17  # below this number of weights a second thread costs more than it saves
Scratch = Callable[[tuple[int, int], torch.dtype], Tensor] | None
"""(shape, dtype) → the contiguous CPU tensor to decode into; None: allocate a new one."""
Affine = tuple[Tensor, Tensor]
"""Scale and minimum of each group of weights, bf16 (G)."""
Nested = tuple[Tensor, Tensor, Tensor, Tensor]
"""8-bit scales: codes, code book of 256 fp32 entries, one fp32 outer scale per 256 codes, fp32 offset."""
_P, _N, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_ARGUMENTS = {
    "bitrank_affine": (_P, _N, _I, _P, _P, _N, _N, _N, _I, _I, _P),
    "bitrank_codebook": (_P, _N, _P, _P, _N, _N, _N, _I, _I, _P),
    "bitrank_nested_codebook": (_P, _P, _P, _P, _P, _P, _N, _P, _N, _N, _N, _I, _I, _P),
    "bitrank_nested": (_P, _P, _P, _P, _N, _N, _P),
    "bitrank_rows": (_P, _P, _I, _N, _N, _I, _I, _P),
    "bitrank_quanto": (_P, _I, _P, _P, _N, _N, _N, _I, _I, _P),
}


def affine(
    codes: Tensor,
    groups: Affine,
    bits: int,
    block: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    scratch: Scratch = None,
) -> Tensor | None:
    """``code · scale + minimum``, (rows, columns) = ``shape``.

    ``codes`` are packed by :mod:`~bitrank_quant.packing`; ``groups`` are scale and minimum of each block of a
    row.
    """
    if codes.is_cuda:
        return device.affine(codes, groups, bits, block, shape, dtype)
    (scale_G, minimum_G), (rows, columns) = groups, shape
    blocks = rows * -(-columns // block)
    count = packed_bytes(blocks * block, bits)
    if not (_ready(dtype) and _fits(codes, torch.uint8, count) and _fits(scale_G, torch.bfloat16, blocks)):
        return None
    if not _fits(minimum_G, torch.bfloat16, blocks):
        return None
    given = codes.data_ptr(), count, bits, scale_G.data_ptr(), minimum_G.data_ptr(), block, rows, columns
    return _call("bitrank_affine", shape, dtype, scratch, *given)


def codebook(
    codes: Tensor,
    book: Tensor,
    absmax_N: Tensor,
    block: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    scratch: Scratch = None,
) -> Tensor | None:
    """``book[code] · absmax``: packed codes, fp32 entries, one fp32 absmax per block of a row.

    16 entries of 4-bit codes on a CPU, 8 of 3-bit codes too on a GPU.
    """
    if codes.is_cuda:
        return device.codebook(codes, book, absmax_N, block, shape, dtype)
    rows, columns = shape
    groups = rows * -(-columns // block)
    count = packed_bytes(groups * block, 4)
    if not (_ready(dtype) and _fits(codes, torch.uint8, count) and _fits(book, torch.float32, 16)):
        return None
    if not _fits(absmax_N, torch.float32, groups):
        return None
    given = codes.data_ptr(), count, book.data_ptr(), absmax_N.data_ptr(), block, rows, columns
    return _call("bitrank_codebook", shape, dtype, scratch, *given)


def nested_codebook(
    codes: Tensor,
    book: Tensor,
    nested: Nested,
    block: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    scratch: Scratch = None,
) -> Tensor | None:
    """:func:`codebook` with nested scales instead of absmax."""
    if codes.is_cuda:
        absmax_N = device.nested_scales(*nested)
        return None if absmax_N is None else codebook(codes, book, absmax_N, block, shape, dtype)
    rows, columns = shape
    groups = rows * -(-columns // block)
    count = packed_bytes(groups * block, 4)
    if not (
        _ready(dtype)
        and _fits(codes, torch.uint8, count)
        and _fits(book, torch.float32, 16)
        and _nested_fits(nested, groups)
    ):
        return None
    absmax_N = nested[2].new_empty(groups)
    scales = [t.data_ptr() for t in (*nested, absmax_N)]
    given = codes.data_ptr(), count, book.data_ptr(), block, rows, columns
    return _call("bitrank_nested_codebook", shape, dtype, scratch, *scales, *given)


def nested_scales(
    codes_N: Tensor, book: Tensor, outer_M: Tensor, offset: Tensor, first: int = 0
) -> Tensor | None:
    """``book[code] · outer + offset`` in fp32.

    ``codes_N`` start at position ``first`` of all codes; the other arguments are as in :data:`Nested`.
    """
    if codes_N.is_cuda:
        return device.nested_scales(codes_N, book, outer_M, offset, first)
    count = codes_N.numel()
    if not (
        _ready(torch.float32) and first >= 0 and _nested_fits((codes_N, book, outer_M, offset), count, first)
    ):
        return None
    made = torch.empty(count, dtype=torch.float32, device="cpu")
    given = codes_N.data_ptr(), book.data_ptr(), outer_M.data_ptr(), offset.data_ptr(), first, count
    _function("bitrank_nested")(*given, made.data_ptr())
    return made


def int8_rows(
    codes_OI: Tensor, scale_O: Tensor, dtype: torch.dtype, scratch: Scratch = None
) -> Tensor | None:
    """``code · scale`` with one scale per row, multiplied in fp32 and rounded once, to ``dtype``."""
    if codes_OI.is_cuda:
        return device.int8_rows(codes_OI, scale_O, dtype)
    if codes_OI.dim() != 2:
        return None
    (rows, columns), kind = codes_OI.shape, scale_O.dtype
    if not (
        _ready(dtype)
        and kind in _KINDS
        and _fits(codes_OI, torch.int8, rows * columns)
        and _fits(scale_O, kind, rows)
    ):
        return None
    given = codes_OI.data_ptr(), scale_O.data_ptr(), _KINDS[kind], rows, columns
    return _call("bitrank_rows", (rows, columns), dtype, scratch, *given)


def quanto(
    packed_LB: Tensor,
    scale_G: Tensor,
    shift_G: Tensor,
    bits: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    scratch: Scratch = None,
) -> Tensor | None:
    """quanto's groups along rows, ``code · scale − shift``.

    ``packed_LB`` has (lines, block) bytes; one byte packs codes of groups that are ``lines`` apart. quanto
    multiplies and subtracts in ``dtype``, so both the product and the difference are rounded.
    """
    groups, (lines, block) = scale_G.numel(), packed_LB.shape
    if groups * block != shape[0] * shape[1] or lines != -(-groups * bits // 8):
        return None
    if not (_ready(dtype) and _fits(packed_LB, torch.uint8, lines * block) and _fits(scale_G, dtype, groups)):
        return None
    if not _fits(shift_G, dtype, groups):
        return None
    given = packed_LB.data_ptr(), bits, scale_G.data_ptr(), shift_G.data_ptr(), groups, lines, block
    return _call("bitrank_quanto", shape, dtype, scratch, *given)


def _call(name: str, shape: tuple[int, int], dtype: torch.dtype, scratch: Scratch, *given: int) -> Tensor:
    made = torch.empty(shape, dtype=dtype, device="cpu") if scratch is None else scratch(shape, dtype)
    threads = torch.get_num_threads() if shape[0] * shape[1] >= _PARALLEL_FROM else 1
    _function(name)(*given, _KINDS[dtype], threads, made.data_ptr())
    return made


def _function(name: str) -> Any:
    built = built_kernels()
    assert isinstance(built, Built)  # checked by _ready
    return getattr(built.library, name)


def _ready(dtype: torch.dtype) -> bool:
    """Whether the kernels are available and support the output ``dtype``."""
    return not torch.compiler.is_compiling() and dtype in _KINDS and _usable()


def _fits(tensor: Tensor, dtype: torch.dtype, count: int) -> bool:
    """Whether the kernels can read ``tensor``: plain, contiguous, on the CPU, with this dtype and size.

    Subclasses (fake, functional, distributed tensors) have no memory of their own to read.
    """
    return (
        type(tensor) in _PLAIN
        and tensor.is_cpu
        and tensor.dtype is dtype
        and tensor.numel() == count
        and tensor.is_contiguous()
        and not tensor.requires_grad
    )


def _nested_fits(scales: Nested, count: int, first: int = 0) -> bool:
    codes_N, book, outer_M, offset = scales
    outer = outer_M.numel()
    return (
        first + count <= 256 * outer
        and _fits(codes_N, torch.uint8, count)
        and _fits(book, torch.float32, 256)
        and _fits(outer_M, torch.float32, outer)
        and _fits(offset, torch.float32, 1)
    )


def _usable() -> bool:
    return not switched_off() and isinstance(built_kernels(), Built)


@cache
def switched_off() -> bool:
    """Whether the user disabled the kernels; the environment is read once per process."""
    return os.environ.get("BITRANK_KERNELS") == "0"


@cache
def built_kernels() -> Built | str:
    """The loaded kernels, or the reason why there are none."""
    try:
        return with_types(load())
    except BuildError as reason:
        return str(reason)


def with_types(built: Built) -> Built:
    """Declare the argument types of the functions of ``built`` to ctypes."""
    for name, arguments in _ARGUMENTS.items():
        function: Any = getattr(built.library, name)
        function.argtypes, function.restype = arguments, None
    return built
