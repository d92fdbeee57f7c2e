"""Fast decoding on the CPU: one small C file behind five functions. Each gives what is decoded, or None when plain torch has to do it.

Plain torch does it on other devices, under a compiler that traces (it fuses the decoding itself), in other output types, where no C
compiler is found, and with ``BITRANK_KERNELS=0``. The numbers are the same to the last bit, so nothing else depends on who did it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bitrank_quant.kernels.build import BuildError, Built, load
from bitrank_quant.packing import packed_bytes

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the enum of decode.c
_GRAIN = 1 << 17  # weights below which a second thread costs more than it does
Room = Callable[[tuple[int, int], torch.dtype], Tensor] | None
"""Gives the (contiguous CPU) tensor that a matrix is decoded into; None: a new one."""
_P, _N, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_ARGUMENTS = {
    "bitrank_affine": (_P, _N, _I, _P, _P, _N, _N, _N, _I, _I, _P),
    "bitrank_codebook": (_P, _N, _P, _P, _N, _N, _N, _I, _I, _P),
    "bitrank_nested": (_P, _P, _P, _P, _N, _N, _P),
    "bitrank_rows": (_P, _P, _N, _N, _I, _I, _P),
    "bitrank_quanto": (_P, _I, _P, _P, _N, _N, _N, _I, _I, _P),
}


def kernels_status() -> str:
    """One sentence: who decodes low-bit weights on the CPU of this machine, and if it is plain torch, why. Compiles if need be."""
    if _switched_off():
        return "plain torch decodes low-bit weights: BITRANK_KERNELS=0"
    built = _built()
    if isinstance(built, str):
        return f"plain torch decodes low-bit weights, several times slower: {built}"
    threads = (
        f"on the threads of torch ({built.openmp})" if built.openmp else "on one thread: torch has no libgomp that this compiler can use"
    )
    return f"compiled kernels ({built.compiler}) decode low-bit weights, {threads}"


def affine(
    codes: Tensor, scale_G: Tensor, minimum_G: Tensor, bits: int, block: int, shape: tuple[int, int], dtype: torch.dtype, room: Room = None
) -> Tensor | None:
    """``code · scale + minimum``: ``codes`` packed by :mod:`~bitrank_quant.packing`, bf16 scale and minimum per block of a row."""
    groups = shape[0] * -(-shape[1] // block)
    needed = [(codes, torch.uint8, packed_bytes(groups * block, bits)), *((t, torch.bfloat16, groups) for t in (scale_G, minimum_G))]
    if not _fits(dtype, *needed):
        return None
    return _call("bitrank_affine", shape, dtype, room, _at(codes), codes.numel(), bits, _at(scale_G), _at(minimum_G), block, *shape)


def codebook(
    codes: Tensor, book: Tensor, absmax_N: Tensor, block: int, shape: tuple[int, int], dtype: torch.dtype, room: Room = None
) -> Tensor | None:
    """``book[code] · absmax``: 4-bit ``codes``, 16 fp32 entries in ``book``, one fp32 absmax per block of a row."""
    groups = shape[0] * -(-shape[1] // block)
    needed = [(codes, torch.uint8, packed_bytes(groups * block, 4)), (book, torch.float32, 16), (absmax_N, torch.float32, groups)]
    if not _fits(dtype, *needed):
        return None
    return _call("bitrank_codebook", shape, dtype, room, _at(codes), codes.numel(), _at(book), _at(absmax_N), block, *shape)


def nested_scales(codes_N: Tensor, book: Tensor, outer_M: Tensor, offset: Tensor, first: int = 0) -> Tensor | None:
    """``book[code] · outer + offset`` in fp32: 256 entries in ``book``, one outer scale for 256 codes, of which ``codes_N`` are those
    from ``first`` on."""
    count = codes_N.numel()
    needed = [(codes_N, torch.uint8, count), (book, torch.float32, 256), (outer_M, torch.float32, outer_M.numel())]
    if not _fits(torch.float32, *needed, (offset, torch.float32, 1)) or not 0 <= first <= 256 * outer_M.numel() - count:
        return None
    made = torch.empty(count, dtype=torch.float32, device="cpu")
    _library().bitrank_nested(_at(codes_N), _at(book), _at(outer_M), _at(offset), first, count, _at(made))
    return made


def int8_rows(codes_OI: Tensor, scale_O: Tensor, dtype: torch.dtype, room: Room = None) -> Tensor | None:
    """``code · scale`` with one scale a row, which is rounded to ``dtype`` first."""
    if codes_OI.dim() != 2 or not _fits(dtype, (codes_OI, torch.int8, codes_OI.numel()), (scale_O, scale_O.dtype, codes_OI.shape[0])):
        return None
    scale_O = scale_O.to(dtype).float()
    return _call("bitrank_rows", (codes_OI.shape[0], codes_OI.shape[1]), dtype, room, _at(codes_OI), _at(scale_O), *codes_OI.shape)


def quanto(
    packed_LB: Tensor, scale_G: Tensor, shift_G: Tensor, bits: int, shape: tuple[int, int], dtype: torch.dtype, room: Room = None
) -> Tensor | None:
    """quanto's groups along rows, ``code · scale − shift``: (lines, block) bytes, each with codes of groups ``lines`` apart.

    quanto multiplies and subtracts in ``dtype``, so the product is rounded as well as the difference.
    """
    groups, (lines, block) = scale_G.numel(), packed_LB.shape
    fits = _fits(dtype, (packed_LB, torch.uint8, lines * block), *((t, dtype, groups) for t in (scale_G, shift_G)))
    if not fits or groups * block != shape[0] * shape[1] or lines != -(-groups * bits // 8):
        return None
    scale_G, shift_G = scale_G.float(), shift_G.float()
    return _call("bitrank_quanto", shape, dtype, room, _at(packed_LB), bits, _at(scale_G), _at(shift_G), groups, lines, block)


def _call(name: str, shape: tuple[int, int], dtype: torch.dtype, room: Room, *arguments: int) -> Tensor:
    made = torch.empty(shape, dtype=dtype, device="cpu") if room is None else room(shape, dtype)
    threads = torch.get_num_threads() if made.numel() >= _GRAIN else 1
    getattr(_library(), name)(*arguments, _KINDS[dtype], threads, _at(made))
    return made


def _library() -> ctypes.CDLL:
    built = _built()
    assert isinstance(built, Built)  # _fits has asked
    return built.library


def _fits(dtype: torch.dtype, *needed: tuple[Tensor, torch.dtype, int]) -> bool:
    """Whether the kernels are there and may read ``needed``: plain contiguous CPU tensors of this type and this many elements."""
    if torch.compiler.is_compiling() or dtype not in _KINDS:
        return False
    return all(_plain(t) and t.dtype == kind and t.numel() == count for t, kind, count in needed) and _usable()


def _plain(tensor: Tensor) -> bool:
    # Subclasses (fake, functional, distributed tensors) have no memory of their own to read.
    return (
        type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.requires_grad
    )


def _usable() -> bool:
    return not _switched_off() and isinstance(_built(), Built)


def _switched_off() -> bool:
    return os.environ.get("BITRANK_KERNELS") == "0"


@cache
def _built() -> Built | str:
    try:
        return bound(load())
    except BuildError as reason:
        return str(reason)


def bound(built: Built) -> Built:
    """``built`` with the types of its functions told to ctypes."""
    for name, arguments in _ARGUMENTS.items():
        function: Any = getattr(built.library, name)
        function.argtypes, function.restype = arguments, None
    return built


def _at(tensor: Tensor) -> int:
    return tensor.data_ptr()
