"""Code book formats, their books, and the 8-bit format of double quantization's scales.

NF4: 16 quantiles of N(0, 1), scaled to [-1, 1] with an exact zero (QLoRA, Dettmers et al. 2023, appendix E).
NF3: 8 quantiles by the same rule.
FP4: sign, 2 exponent bits, 1 mantissa bit, scaled to [-1, 1] (bitsandbytes' e2m1 with its own subnormal).
Dynamic 8-bit: sign, a run of zeros as decimal exponent, the rest a linear fraction (Dettmers 2016, 8-bit
approximations).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitrank_quant import kernels
from bitrank_quant.formats.base import Tensors, block_count, blocks, check_rows, take_rows, unblock
from bitrank_quant.kernels.device import book_on
from bitrank_quant.packing import pack_bits, packed_bytes, unpack_bits

_NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip
# The same construction with 8 values; see test_formats.py.
_NF3 = [-1.0, -0.5350227355957031, -0.2469314038753510, 0.0, 0.1833375245332718, 0.3819939494132996,
        0.6229856610298157, 1.0]  # fmt: skip
_FP4_POSITIVE = [0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25]

CODEBOOKS: dict[str, Tensor] = {
    "nf4": torch.tensor(_NF4),
    "nf3": torch.tensor(_NF3),
    "fp4": torch.tensor(_FP4_POSITIVE + [-value for value in _FP4_POSITIVE]),
}


def dynamic_map_8bit() -> Tensor:
    """The 256 values of signed dynamic 8-bit, ascending, in [-1, 1]."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = ((edges[:-1] + edges[1:]) / 2) * 10.0 ** (exponent - 6)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values))


DYNAMIC_8BIT = dynamic_map_8bit()
_SCALE_BLOCK = 256


def encode_dynamic_8bit(absmax_N: Tensor) -> dict[str, Tensor]:
    """Quantize block scales (N,): subtract their mean, then dynamic 8-bit in blocks of 256.

    QLoRA, section 3, double quantization.
    """
    offset = absmax_N.mean()
    centred_MB = torch.nn.functional.pad(absmax_N - offset, (0, -absmax_N.numel() % _SCALE_BLOCK)).view(
        -1, _SCALE_BLOCK
    )
    outer_M = centred_MB.abs().amax(1)
    scaled_MB = centred_MB / outer_M.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    book = book_on(DYNAMIC_8BIT, absmax_N.device)
    codes_N = (
        torch.bucketize(scaled_MB, (book[1:] + book[:-1]) / 2).to(torch.uint8).flatten()[: absmax_N.numel()]
    )
    return {"absmax": codes_N.clone(), "outer": outer_M, "offset": offset}


def decode_dynamic_8bit(tensors: dict[str, Tensor], at: slice | Tensor = slice(None)) -> Tensor:
    """The fp32 block scales that :func:`encode_dynamic_8bit` stored.

    ``at`` selects them: a slice without a step, or non-negative indices; by default all.
    """
    codes_N, outer_M, offset = tensors["absmax"][at], tensors["outer"], tensors["offset"]
    book = book_on(DYNAMIC_8BIT, outer_M.device)
    if isinstance(at, slice):
        start, stop, _ = at.indices(tensors["absmax"].numel())
        if (made := kernels.nested_scales(codes_N, book, outer_M, offset, start)) is not None:
            return made
        at = torch.arange(start, stop, device=outer_M.device)
    return book[codes_N.int()] * outer_M[at // _SCALE_BLOCK] + offset


@dataclass(frozen=True)
class Codebook:
    """Code book with an absmax per block: ``w ≈ book[code] · absmax``.

    With ``double_quant`` absmax itself is quantized to 8 bits.
    """

    name: str
    block: int = 64
    double_quant: bool = False

    @property
    def bits(self) -> int:
        return (len(CODEBOOKS[self.name]) - 1).bit_length()

    @property
    def about(self) -> str:
        scale = "an 8-bit absmax (double quantization)" if self.double_quant else "one fp32 absmax"
        return f"{self.bits}-bit code book, {scale} per block of {self.block}"

    @property
    def value_range(self) -> tuple[float, float]:
        book = CODEBOOKS[self.name]
        return float(book.min()), float(book.max())

    def encode(self, weight_OI: Tensor) -> Tensors:
        blocks_NB = blocks(weight_OI, self.block)
        book = book_on(CODEBOOKS[self.name], weight_OI.device)
        absmax_N = blocks_NB.abs().amax(1)
        scaled_NB = blocks_NB / absmax_N.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        codes = nearest(scaled_NB.flatten(), book)
        scales = encode_dynamic_8bit(absmax_N) if self.double_quant else {"absmax": absmax_N}
        return {"codes": pack_bits(codes, self.bits), **scales}

    def decode(
        self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, scratch: kernels.Scratch = None
    ) -> Tensor:
        codes, book, absmax_N, nested = (
            tensors["codes"],
            CODEBOOKS[self.name],
            tensors["absmax"],
            "outer" in tensors,
        )
        if nested:
            scales = absmax_N, DYNAMIC_8BIT, tensors["outer"], tensors["offset"]
            made = kernels.nested_codebook(codes, book, scales, self.block, shape, dtype, scratch)
        else:
            made = kernels.codebook(codes, book, absmax_N, self.block, shape, dtype, scratch)
        if made is not None:
            return made
        absmax_N = decode_dynamic_8bit(tensors) if nested else absmax_N
        book = book_on(book, absmax_N.device)
        codes = unpack_bits(codes, self.bits, absmax_N.numel() * self.block)
        values_NB = book[codes.int()].view(-1, self.block) * absmax_N[:, None]
        return unblock(values_NB, shape).to(dtype)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        per_row = tensors["absmax"].numel() // rows
        check_rows(per_row * self.block, self.bits)
        codes = take_rows({"codes": tensors["codes"]}, ids_N, rows)
        if not self.double_quant:
            return codes | take_rows({"absmax": tensors["absmax"]}, ids_N, rows)
        # Blocks of nested scales cross rows, so the scales of the selected rows are decoded here.
        if isinstance(ids_N, slice):
            start, stop, _ = ids_N.indices(rows)
            return codes | {"absmax": decode_dynamic_8bit(tensors, slice(start * per_row, stop * per_row))}
        places_NB = ids_N[:, None] % rows * per_row + torch.arange(per_row, device=ids_N.device)
        return codes | {"absmax": decode_dynamic_8bit(tensors, places_NB.flatten())}

    def nbytes(self, shape: tuple[int, int]) -> int:
        blocks = block_count(shape, self.block)
        scales = blocks + 4 * -(-blocks // 256) + 4 if self.double_quant else 4 * blocks
        return packed_bytes(blocks * self.block, self.bits) + scales

    def __str__(self) -> str:
        size = "" if self.block == 64 else f"-g{self.block}"
        return f"{self.name}{size}{'-dq' if self.double_quant else ''}"


def nearest_values(values: Tensor, book: Tensor) -> Tensor:
    """The nearest entry of ``book`` for each of ``values``, with the ties of :func:`nearest`."""
    entries = book.sort().values
    return torch.index_select(entries, 0, _places(values, entries)).view(values.shape)


def nearest(values: Tensor, book: Tensor) -> Tensor:
    """Index (uint8) of the nearest entry of ``book`` for each of ``values``; ties go to the lower entry."""
    order = book.argsort()
    places = _places(values, book[order])
    return torch.index_select(order.to(torch.uint8), 0, places).view(values.shape)


def _places(values: Tensor, entries: Tensor) -> Tensor:
    """Number of middles between ascending ``entries`` that are below each value, flat; NaN is above all.

    A vectorized pass for each of at most 15 middles is several times faster on a CPU than a binary search.
    """
    middles = (entries[1:] + entries[:-1]) / 2
    above, at_most = torch.full_like(values, len(middles)), torch.empty_like(values)
    for middle in middles.tolist():
        above -= torch.le(values, middle, out=at_most)
    return above.flatten().to(torch.int32)
