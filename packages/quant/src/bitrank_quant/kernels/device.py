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

from bitrank_quant.packing import pack_bits

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
) -> Tensor | None:
    """``book[code] · absmax`` in fp32, rounded once to ``dtype``; the size of the book gives the bits."""
    if not _serves(dtype, codes, absmax_N):
        return None
    made = _new(codes, shape, dtype)
    bits = (len(book) - 1).bit_length()
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
    if book.device == device or device.type != "cuda" or type(book) is not Tensor:
        return book.to(device)
    key = (id(book), device)
    if key not in _books:
        made = book.to(device)
        if type(made) is not Tensor or made.is_inference() or torch.compiler.is_compiling():
            return made
        _books[key] = book, made
    return _books[key][1]


_books: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
"""Code books of the formats, and their copies on GPUs. The first keeps its identity while it is here."""


@cache
def problem() -> str | None:
    """Why plain torch decodes on the GPU of this machine; None if the kernels do.

    The first call compiles every kernel, and compares what each decodes with plain arithmetic.
    """
    if os.environ.get("BITRANK_KERNELS") == "0":
        return "BITRANK_KERNELS=0"
    if find_spec("triton") is None:
        return "no Triton"
    try:
        wrong = [name for name, check in _CHECKS.items() if not check()]
    except Exception as error:  # noqa: BLE001 - Triton and its compilers raise errors of many classes
        return f"Triton fails here: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    return f"Triton's kernels for {', '.join(wrong)} compute other numbers here" if wrong else None


def _decodes_affine() -> bool:
    """Whether all codes of each layout of bits are decoded, with scales and minima that are exact in bf16."""
    return all(_decodes_codes(bits) for bits in (2, 3, 4, 8))


def _decodes_codes(bits: int) -> bool:
    codes = torch.arange(512, device="cuda").remainder(2**bits).to(torch.uint8)
    scale, minimum = torch.tensor([[0.5, 2], [-1, 3]], dtype=torch.bfloat16, device="cuda")
    made = torch.empty((2, 256), dtype=torch.float32, device="cuda")
    _kernels().launch_affine(pack_bits(codes, bits), scale, minimum, made, bits, 256)
    return torch.equal(made, codes.view(2, 256).float() * scale.float()[:, None] + minimum.float()[:, None])


def _decodes_books() -> bool:
    codes = torch.arange(128, device="cuda").remainder(16).to(torch.uint8)
    book, absmax = (torch.linspace(-1, 1, count, device="cuda") for count in (16, 2))
    made = torch.empty((1, 128), dtype=torch.float32, device="cuda")
    _kernels().launch_codebook(pack_bits(codes, 4), book, absmax, made, 4, 64)
    return torch.equal(made, book[codes.int()].view(2, 64).mul(absmax[:, None]).view(1, 128))


def _decodes_scales() -> bool:
    codes = torch.arange(300, device="cuda").remainder(256).to(torch.uint8)
    book, outer = torch.arange(256, device="cuda").float(), torch.tensor([0.5, 2.0], device="cuda")
    made = torch.empty(300, dtype=torch.float32, device="cuda")
    _kernels().launch_nested(codes, book, outer, torch.tensor(1.0, device="cuda"), made, 8)
    places = torch.arange(8, 308, device="cuda")
    return torch.equal(made, codes.float() * outer[places // 256] + 1)


def _decodes_rows() -> bool:
    codes = torch.arange(-32, 32, dtype=torch.int8, device="cuda").view(2, 32)
    made, scale = torch.empty((2, 32), device="cuda"), torch.tensor([0.5, 2.0], device="cuda")
    _kernels().launch_rows(codes, scale, made)
    return torch.equal(made, codes.float() * scale[:, None])


_CHECKS = {
    "affine integers": _decodes_affine,
    "code books": _decodes_books,
    "nested scales": _decodes_scales,
    "rows of int8": _decodes_rows,
}


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
