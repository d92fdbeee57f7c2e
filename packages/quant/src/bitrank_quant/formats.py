"""Number formats for stored weights, as values.

A format says how one weight matrix is stored: how many bits a code has, how many weights share a scale, and what else is kept
beside the codes. It can encode a matrix into plain tensors, decode them again, and tell their bytes without doing either.
Its text form (``str(fmt)``) parses back with :func:`parse_format`, so a plan can be plain text:

    fp32 bf16 fp16         stored as is
    int8                   symmetric, one fp32 scale per row
    llm-int8               the same codes; activations are quantized too (LLM.int8(), Dettmers et al. 2022)
    int4-g64 int3-g64 …    affine, a bf16 scale and a bf16 minimum per group of 64 along the row (2 to 8 bits, any group size)
    nf4 fp4                4-bit code book, one fp32 absmax per block of 64 (QLoRA, Dettmers et al. 2023)
    nf4-dq fp4-dq          the same with the absmax values quantized to 8 bits in blocks of 256 (double quantization)

Encoding here is the reference: plain torch, any device, no kernels. Faster backends must agree with it (see the tests). Decoding on
a CPU takes :mod:`~bitrank_quant.kernels` where they can be compiled; their numbers are those of the torch code below, bit by bit.
Left out: formats without a per-block scale, and activation formats other than LLM.int8().
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bitrank_quant import kernels
from bitrank_quant.codebooks import CODEBOOKS, DYNAMIC_8BIT, decode_dynamic_8bit, encode_dynamic_8bit
from bitrank_quant.errors import QuantError
from bitrank_quant.packing import pack_bits, packed_bytes, unpack_bits

Tensors = dict[str, Tensor]


class Format(Protocol):
    """What every format offers. ``weight_OI`` is (out, in); blocks never cross a row."""

    @property
    def bits(self) -> int:
        """Bits of one code, scales not counted."""

    @property
    def block(self) -> int | None:
        """Weights that share one scale along a row; None: the whole row, or no scale at all."""

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest code value, before the scale is applied."""

    def encode(self, weight_OI: Tensor) -> Tensors: ...

    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, room: kernels.Room = None) -> Tensor:
        """The matrix; where it is made on a CPU, in what ``room`` gives, but for what plain torch makes of codes."""

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        """The encoded tensors of the rows ``ids_N`` alone, of a matrix with ``rows`` rows: an embedding look-up, or neighbours."""

    def nbytes(self, shape: tuple[int, int]) -> int: ...


@dataclass(frozen=True)
class Float:
    """A floating-point format: the weight itself, cast."""

    name: str

    @property
    def dtype(self) -> torch.dtype:
        return _FLOATS[self.name]

    @property
    def bits(self) -> int:
        return self.dtype.itemsize * 8

    block = None

    @property
    def value_range(self) -> tuple[float, float]:
        info = torch.finfo(self.dtype)
        return info.min, info.max

    def encode(self, weight_OI: Tensor) -> Tensors:
        return {"weight": weight_OI.detach().to(self.dtype).contiguous()}

    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, room: kernels.Room = None) -> Tensor:
        weight_OI = tensors["weight"]
        if room is None or weight_OI.dtype == dtype or weight_OI.device.type != "cpu" or torch.compiler.is_compiling():
            return weight_OI.to(dtype)
        return room(shape, dtype).copy_(weight_OI)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        return _take_rows(tensors, ids_N, rows)

    def nbytes(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] * self.dtype.itemsize

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Int8Row:
    """Symmetric int8 with one fp32 scale per row: ``w ≈ code · absmax(row) / 127``.

    ``activations=True`` is LLM.int8(): the same stored bytes, but products run on int8 activations outside the outlier columns.
    """

    activations: bool = False
    bits = 8
    block = None
    value_range = (-127.0, 127.0)

    def encode(self, weight_OI: Tensor) -> Tensors:
        weight_OI = weight_OI.detach().float()
        scale_O = weight_OI.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        codes_OI = (weight_OI / scale_O[:, None]).round().clamp(-127, 127).to(torch.int8)
        return {"codes": codes_OI, "scale": scale_O}

    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, room: kernels.Room = None) -> Tensor:
        made = kernels.int8_rows(tensors["codes"], tensors["scale"], dtype, room)
        if made is not None:
            return made
        # int8 codes are exact in bf16 and fp16, so only the scaled product is rounded.
        return tensors["codes"].to(dtype).mul_(tensors["scale"].to(dtype)[:, None])

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        return _take_rows(tensors, ids_N, rows)

    def nbytes(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] + 4 * shape[0]

    def __str__(self) -> str:
        return "llm-int8" if self.activations else "int8"


@dataclass(frozen=True)
class Affine:
    """Affine integers: ``w ≈ code · scale + minimum`` with bf16 scale and minimum per group along the row.

    Codes are rounded against the *stored* (bf16) scale and minimum, so their own rounding costs no accuracy.
    A row whose length is no multiple of the group is padded; the padding is stored and counted.
    """

    bits: int
    block: int

    @property
    def value_range(self) -> tuple[float, float]:
        return 0.0, float(2**self.bits - 1)

    def encode(self, weight_OI: Tensor) -> Tensors:
        groups_GB = _blocks(weight_OI, self.block)
        low_G, high_G = groups_GB.amin(1), groups_GB.amax(1)
        top = 2**self.bits - 1
        minimum_G = low_G.to(torch.bfloat16)
        span_G = (high_G - minimum_G.float()).clamp_min(torch.finfo(torch.float32).tiny)
        scale_G = (span_G / top).to(torch.bfloat16).clamp_min(torch.finfo(torch.bfloat16).tiny)
        codes_GB = ((groups_GB - minimum_G.float()[:, None]) / scale_G.float()[:, None]).round().clamp(0, top)
        return {"codes": pack_bits(codes_GB.to(torch.uint8).flatten(), self.bits), "scale": scale_G, "minimum": minimum_G}

    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, room: kernels.Room = None) -> Tensor:
        made = kernels.affine(tensors["codes"], tensors["scale"], tensors["minimum"], self.bits, self.block, shape, dtype, room)
        if made is not None:
            return made
        count = tensors["scale"].numel() * self.block
        codes_GB = unpack_bits(tensors["codes"], self.bits, count).view(-1, self.block)
        # fp32 inside: a bf16 product plus a bf16 sum would round twice.
        values_GB = torch.addcmul(tensors["minimum"].float()[:, None], codes_GB.float(), tensors["scale"].float()[:, None])
        return _unblock(values_GB, shape).to(dtype)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        return _take_rows(tensors, ids_N, rows)

    def nbytes(self, shape: tuple[int, int]) -> int:
        groups = _block_count(shape, self.block)
        return packed_bytes(groups * self.block, self.bits) + 4 * groups

    def __str__(self) -> str:
        return f"int{self.bits}-g{self.block}"


@dataclass(frozen=True)
class Codebook:
    """Four-bit code book with an absmax per block: ``w ≈ book[code] · absmax``; with ``double_quant`` absmax is 8-bit itself."""

    name: str
    block: int = 64
    double_quant: bool = False
    bits = 4

    @property
    def value_range(self) -> tuple[float, float]:
        book = CODEBOOKS[self.name]
        return float(book.min()), float(book.max())

    def encode(self, weight_OI: Tensor) -> Tensors:
        blocks_NB = _blocks(weight_OI, self.block)
        book = CODEBOOKS[self.name].to(weight_OI.device)
        absmax_N = blocks_NB.abs().amax(1)
        scaled_NB = blocks_NB / absmax_N.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        codes = nearest(scaled_NB.flatten(), book)
        scales = encode_dynamic_8bit(absmax_N) if self.double_quant else {"absmax": absmax_N}
        return {"codes": pack_bits(codes, 4), **scales}

    def decode(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, room: kernels.Room = None) -> Tensor:
        codes, book, absmax_N, nested = tensors["codes"], CODEBOOKS[self.name], tensors["absmax"], "outer" in tensors
        if nested:
            scales = absmax_N, DYNAMIC_8BIT, tensors["outer"], tensors["offset"]
            made = kernels.nested_codebook(codes, book, scales, self.block, shape, dtype, room)
        else:
            made = kernels.codebook(codes, book, absmax_N, self.block, shape, dtype, room)
        if made is not None:
            return made
        absmax_N = decode_dynamic_8bit(tensors) if nested else absmax_N
        book = book.to(absmax_N.device)
        codes = unpack_bits(codes, 4, absmax_N.numel() * self.block)
        values_NB = book[codes.int()].view(-1, self.block) * absmax_N[:, None]
        return _unblock(values_NB, shape).to(dtype)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        codes = _take_rows({"codes": tensors["codes"]}, ids_N, rows)
        if not self.double_quant:
            return codes | _take_rows({"absmax": tensors["absmax"]}, ids_N, rows)
        # The blocks of nested scales do not end where rows do, so those of the rows are decoded here.
        per_row = tensors["absmax"].numel() // rows
        if isinstance(ids_N, slice):
            start, stop, _ = ids_N.indices(rows)
            return codes | {"absmax": decode_dynamic_8bit(tensors, slice(start * per_row, stop * per_row))}
        places_NB = ids_N[:, None] % rows * per_row + torch.arange(per_row, device=ids_N.device)
        return codes | {"absmax": decode_dynamic_8bit(tensors, places_NB.flatten())}

    def nbytes(self, shape: tuple[int, int]) -> int:
        blocks = _block_count(shape, self.block)
        scales = blocks + 4 * -(-blocks // 256) + 4 if self.double_quant else 4 * blocks
        return packed_bytes(blocks * self.block, 4) + scales

    def __str__(self) -> str:
        size = "" if self.block == 64 else f"-g{self.block}"
        return f"{self.name}{size}{'-dq' if self.double_quant else ''}"


_FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# The named formats; `parse_format` also takes any bit width 2-8, group size and `-dq` in the same grammar.
_NAMED: list[Format] = [
    *(Float(name) for name in _FLOATS),
    Int8Row(),
    Int8Row(activations=True),
    *(Codebook(name, double_quant=dq) for name in ("nf4", "fp4") for dq in (False, True)),
    *(Affine(bits, 64) for bits in (8, 6, 5, 4, 3, 2)),
]
FORMATS: dict[str, Format] = {str(fmt): fmt for fmt in _NAMED}


def parse_format(text: str) -> Format:
    """The format that ``text`` names. Raises :class:`QuantError` with the nearest valid names when there is none."""
    if text in FORMATS:
        return FORMATS[text]
    if match := re.fullmatch(r"int([2-8])-g([1-9]\d*)", text):
        return Affine(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(nf4|fp4)-g([1-9]\d*)(-dq)?", text):
        return Codebook(match[1], int(match[2]), bool(match[3]))
    near = difflib.get_close_matches(text, FORMATS, n=3) or list(FORMATS)
    raise QuantError(f"unknown format {text!r}; nearest: {', '.join(near)} (also int<2-8>-g<size>, nf4-g<size>[-dq])")


def float_format(dtype: torch.dtype) -> Float:
    """The floating-point format that holds ``dtype``. Raises :class:`QuantError` where there is none."""
    for name, held in _FLOATS.items():
        if held == dtype:
            return Float(name)
    raise QuantError(f"no format holds {dtype}; there are {', '.join(_FLOATS)}")


def nearest(values: Tensor, book: Tensor) -> Tensor:
    """Index (uint8) of the nearest entry of ``book`` for each of ``values``; ties go to the lower entry."""
    order = book.argsort()
    middles = (book[order][1:] + book[order][:-1]) / 2
    return order[torch.bucketize(values, middles)].to(torch.uint8)


def _take_rows(tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
    """Rows of tensors that each hold the same number of elements per row; the shape of the rest is kept flat or 2-D."""
    taken = {}
    for name, tensor in tensors.items():
        if tensor.numel() % rows:
            raise QuantError(f"rows of this format do not end on a byte: {tensor.numel()} bytes for {rows} rows; use a group of 8·k")
        per_row = tensor.reshape(rows, -1)[ids_N]
        taken[name] = per_row if tensor.dim() == 2 else per_row.flatten()
    return taken


def _block_count(shape: tuple[int, int], block: int) -> int:
    return shape[0] * -(-shape[1] // block)


def _blocks(weight_OI: Tensor, block: int) -> Tensor:
    """(out, in) → (number of blocks, block) in fp32, each row padded with its own last value."""
    weight_OI = weight_OI.detach().float()
    if missing := -weight_OI.shape[1] % block:
        weight_OI = torch.cat([weight_OI, weight_OI[:, -1:].expand(-1, missing)], dim=1)
    return weight_OI.reshape(-1, block)


def _unblock(values_NB: Tensor, shape: tuple[int, int]) -> Tensor:
    return values_NB.reshape(shape[0], -1)[:, : shape[1]]
