"""The kernels of :mod:`~bitrank_quant.kernels.triton_decode` on a GPU, with the checks before each call.

Each function returns None if plain torch has to decode: without Triton or its C compiler, for other output
dtypes, under a tracing compiler, and with ``BITRANK_KERNELS=0``.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, torch.nn.Parameter)


def affine(
    codes: Tensor,
    groups: tuple[Tensor, Tensor],
    bits: int,
    block: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor | None:
    """``code · scale + minimum`` in fp32, rounded once to ``dtype``; arguments as of ``kernels.affine``."""
    if not _serves(dtype, codes, *groups):
        return None
    made, (scale_G, minimum_G) = _new(codes, shape, dtype), groups
    _kernels().launch_affine(codes, scale_G, minimum_G, made, bits, block)
    return made


def codebook(
    codes: Tensor,
    book: Tensor,
    absmax_N: Tensor,
    block: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    bits: int = 4,
) -> Tensor | None:
    """``book[code] · absmax`` in fp32, rounded once to ``dtype``."""
    if not _serves(dtype, codes, absmax_N):
        return None
    made = _new(codes, shape, dtype)
    _kernels().launch_codebook(codes, book_on(book, codes.device), absmax_N, made, bits, block)
    return made


def nested_scales(
    codes_N: Tensor, book: Tensor, outer_M: Tensor, offset: Tensor, first: int = 0
) -> Tensor | None:
    """``book[code] · outer + offset`` in fp32, with the arguments of ``kernels.nested_scales``."""
    if not _serves(torch.float32, codes_N, outer_M, offset):
        return None
    made = torch.empty(codes_N.numel(), dtype=torch.float32, device=codes_N.device)
    _kernels().launch_nested(codes_N, book_on(book, codes_N.device), outer_M, offset, made, first)
    return made


def int8_rows(codes_OI: Tensor, scale_O: Tensor, dtype: torch.dtype) -> Tensor | None:
    """``code · scale`` with one scale per row, in fp32, rounded once to ``dtype``."""
    if codes_OI.dim() != 2 or not _serves(dtype, codes_OI, scale_O):
        return None
    made = torch.empty(codes_OI.shape, dtype=dtype, device=codes_OI.device)
    _kernels().launch_rows(codes_OI, scale_O, made)
    return made


def book_on(book: Tensor, device: torch.device) -> Tensor:
    """``book`` on ``device``; copied to a GPU once, because recorded operations cannot copy from the host."""
    if device.type != "cuda" or type(book) is not Tensor or torch.compiler.is_compiling():
        return book.to(device)
    key = (book.data_ptr(), device)
    if key not in _books:
        made = book.to(device)
        if type(made) is not Tensor or made.is_inference():
            return made
        _books[key] = made
    return _books[key]


_books: dict[tuple[int, torch.device], Tensor] = {}
"""Code books on GPUs. The books of the formats are module constants, so their addresses stay theirs."""


@cache
def problem() -> str | None:
    """Why plain torch decodes on the GPU of this machine; None if the kernels do.

    The first call compiles two kernels and compares what they decode with plain arithmetic.
    """
    if os.environ.get("BITRANK_KERNELS") == "0":
        return "BITRANK_KERNELS=0"
    if find_spec("triton") is None:
        return "no Triton"
    try:
        right = _decodes_three_bits() and _decodes_rows()
    except Exception as error:  # noqa: BLE001 - Triton and its compilers raise errors of many classes
        return f"Triton fails here: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    return None if right else "Triton's kernels compute other numbers here"


def _decodes_three_bits() -> bool:
    """Whether a matrix of the codes 0 to 7, packed into three bytes, is decoded as it should be."""
    codes = torch.tensor([0b10001000, 0b11000110, 0b11111010], dtype=torch.uint8, device="cuda").repeat(8)
    scale, minimum = (torch.full((1,), value, device="cuda") for value in (0.5, -1.0))
    made = torch.empty((1, 64), dtype=torch.float32, device="cuda")
    _kernels().launch_affine(codes, scale, minimum, made, 3, 64)
    return made[0].tolist() == [0.5 * code - 1 for code in range(8)] * 8


def _decodes_rows() -> bool:
    codes = torch.arange(-32, 32, dtype=torch.int8, device="cuda").view(2, 32)
    made = torch.empty((2, 32), dtype=torch.float32, device="cuda")
    _kernels().launch_rows(codes, torch.tensor([0.5, 2.0], device="cuda"), made)
    expected = [0.5 * code for code in range(-32, 0)] + [2.0 * code for code in range(32)]
    return made.flatten().tolist() == expected


def _serves(dtype: torch.dtype, *tensors: Tensor) -> bool:
    return (
        dtype in _DTYPES
        and not torch.compiler.is_compiling()
        and all(map(_is_readable, tensors))
        and problem() is None
    )


def _is_readable(tensor: Tensor) -> bool:
    """Whether a kernel may read ``tensor``: subclasses (fake, distributed) have no memory of their own."""
    return type(tensor) in _PLAIN and tensor.is_cuda and tensor.is_contiguous() and not tensor.requires_grad


def _new(codes: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=codes.device)


def _kernels() -> Any:
    from bitrank_quant.kernels import triton_decode

    return triton_decode
