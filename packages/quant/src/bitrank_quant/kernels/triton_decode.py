"""Triton kernels that decode packed codes on a GPU: one read of the codes, one write of the matrix.

Plain torch needs ten passes over 64-bit words for 3, 5, 6 and 7 bits, which takes longer than the product
with the decoded matrix. Imported only where Triton is installed. Triton compiles these functions and reads
their annotations, so only its own appear.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024  # weights of one program


@triton.jit
def _code(codes, place, inside, BITS: tl.constexpr):
    """Codes at the flat positions ``place`` in the layout of :mod:`bitrank_quant.packing`."""
    if BITS == 8:
        code = tl.load(codes + place, mask=inside, other=0).to(tl.int32)
    elif BITS == 4:
        code = tl.load(codes + place // 2, mask=inside, other=0).to(tl.int32)
        code = (code >> (4 - 4 * (place % 2)).to(tl.int32)) & 15
    elif BITS == 2:
        code = tl.load(codes + place // 4, mask=inside, other=0).to(tl.int32)
        code = (code >> (6 - 2 * (place % 4)).to(tl.int32)) & 3
    else:
        start = ((place % 8) * BITS).to(tl.int32)
        shift = start % 8
        at = codes + (place // 8) * BITS + start // 8
        low = tl.load(at, mask=inside, other=0).to(tl.int32)
        high = tl.load(at + 1, mask=inside & (shift + BITS > 8), other=0).to(tl.int32)
        code = ((low | (high << 8)) >> shift) & ((1 << BITS) - 1)
    return code


@triton.jit
def _places(count, columns, padded, BLOCK: tl.constexpr):
    """Flat positions of this program's weights in the matrix and among the codes, and which exist.

    Rows of ``columns`` weights have ``padded`` codes.
    """
    out = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return out, (out // columns) * padded + out % columns, out < count


@triton.jit
def _affine(
    codes,
    scale_G,
    minimum_G,
    made,
    count,
    columns,
    padded,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    out, place, inside = _places(count, columns, padded, BLOCK)
    code = _code(codes, place, inside, BITS).to(tl.float32)
    scale = tl.load(scale_G + place // GROUP, mask=inside, other=0).to(tl.float32)
    minimum = tl.load(minimum_G + place // GROUP, mask=inside, other=0).to(tl.float32)
    tl.store(made + out, (code * scale + minimum).to(made.dtype.element_ty), mask=inside)


@triton.jit
def _codebook(
    codes,
    book,
    absmax_N,
    made,
    count,
    columns,
    padded,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    out, place, inside = _places(count, columns, padded, BLOCK)
    value = tl.load(book + _code(codes, place, inside, BITS), mask=inside, other=0)
    absmax = tl.load(absmax_N + place // GROUP, mask=inside, other=0).to(tl.float32)
    tl.store(made + out, (value * absmax).to(made.dtype.element_ty), mask=inside)


@triton.jit
def _nested(codes_N, book, outer_M, offset, made, count, first, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    code = tl.load(codes_N + place, mask=inside, other=0).to(tl.int32)
    outer = tl.load(outer_M + (place + first) // 256, mask=inside, other=0)
    tl.store(made + place, tl.load(book + code) * outer + tl.load(offset), mask=inside)


@triton.jit
def _rows(codes_OI, scale_O, made, count, columns, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    code = tl.load(codes_OI + place, mask=inside, other=0).to(tl.float32)
    scale = tl.load(scale_O + place // columns, mask=inside, other=0).to(tl.float32)
    tl.store(made + place, (code * scale).to(made.dtype.element_ty), mask=inside)


def launch_affine(
    codes: Tensor, scale_G: Tensor, minimum_G: Tensor, made_OI: Tensor, bits: int, group: int
) -> None:
    """Decode into ``made_OI``: scale and minimum per ``group`` of a row, the last group of a row padded."""
    sizes = _sizes(made_OI, group)
    _affine[_grid(made_OI)](codes, scale_G, minimum_G, made_OI, *sizes, bits, group, _BLOCK)


def launch_codebook(
    codes: Tensor, book: Tensor, absmax_N: Tensor, made_OI: Tensor, bits: int, group: int
) -> None:
    """Decode into ``made_OI``: an entry of ``book`` per code, a largest magnitude per ``group``."""
    sizes = _sizes(made_OI, group)
    _codebook[_grid(made_OI)](codes, book, absmax_N, made_OI, *sizes, bits, group, _BLOCK)


def launch_nested(
    codes_N: Tensor, book: Tensor, outer_M: Tensor, offset: Tensor, made_N: Tensor, first: int
) -> None:
    """Decode 8-bit scales from position ``first`` of all scales on, into ``made_N``."""
    _nested[_grid(made_N)](codes_N, book, outer_M, offset, made_N, made_N.numel(), first, _BLOCK)


def launch_rows(codes_OI: Tensor, scale_O: Tensor, made_OI: Tensor) -> None:
    """Decode int8 with one scale per row into ``made_OI``."""
    _rows[_grid(made_OI)](codes_OI, scale_O, made_OI, made_OI.numel(), made_OI.shape[1], _BLOCK)


def _grid(made: Tensor) -> tuple[int]:
    return (triton.cdiv(made.numel(), _BLOCK),)


def _sizes(made_OI: Tensor, group: int) -> tuple[int, int, int]:
    """Number of weights, columns, and codes per row."""
    columns = made_OI.shape[1]
    return made_OI.numel(), columns, -(-columns // group) * group
