"""The grids of the formats: see :mod:`~bitrank_quant.quantizers.grid`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format, Tensors
from bitrank_quant.formats.codebook import (
    CODEBOOKS,
    Codebook,
    decode_dynamic_8bit,
    encode_dynamic_8bit,
    nearest,
    nearest_values,
)
from bitrank_quant.formats.integer import Affine, Int8Row, Symmetric
from bitrank_quant.kernels.quantize import Points
from bitrank_quant.packing import pack_bits
from bitrank_quant.quantizers.grid import TINY, Grid, Scales, weighted


@dataclass(frozen=True)
class AffineGrid:
    """``code · scale + minimum``, both in bf16, or nested in 8 bits."""

    format: Affine

    @property
    def block(self) -> int:
        return self.format.block

    @property
    def _top(self) -> int:
        return 2**self.format.bits - 1

    def ranges(self, weights: Tensor) -> tuple[Tensor, ...]:
        return weights.amin(-1), weights.amax(-1)

    def fit(self, ranges: tuple[Tensor, ...], shrink: float | Tensor) -> Scales:
        low, high = shrink * ranges[0], shrink * ranges[1]
        minimum = low.to(torch.bfloat16).float()
        return self._rounded_scale((high - minimum) / self._top), minimum

    def refit(self, weights: Tensor, codes: Tensor, column_weights: Tensor, full: Scales) -> Scales:
        codes = codes.float()
        total = column_weights.sum(-1).clamp_min(TINY)
        mean, mean_code = weighted(weights, column_weights) / total, weighted(codes, column_weights) / total
        centred = codes - mean_code[..., None]
        spread = weighted(centred.square(), column_weights)
        slope = weighted((weights - mean[..., None]) * centred, column_weights) / spread.clamp_min(TINY)
        # One code for the whole group leaves the slope open.
        scale = self._rounded_scale(torch.where(spread > 0, slope, full[0]))
        return scale, (mean - scale * mean_code).to(torch.bfloat16).float()

    @property
    def points(self) -> Points:
        return Points(0, self._top)

    def codes(self, found: Tensor) -> Tensor:
        return found.to(torch.uint8)

    def quantize(self, weights: Tensor, scales: Scales) -> Tensor:
        return self.codes(self._steps(weights, scales))

    def nearest(self, weights: Tensor, scales: Scales) -> Tensor:
        scale, minimum = scales
        return self._steps(weights, scales).mul_(scale[..., None]).add_(minimum[..., None])

    def _steps(self, weights: Tensor, scales: Scales) -> Tensor:
        """The codes as fp32."""
        scale, minimum = scales
        return (weights - minimum[..., None]).div_(scale[..., None]).round_().clamp_(0, self._top)

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        scale, minimum = scales
        return torch.addcmul(minimum[..., None], codes.float(), scale[..., None])

    def basis(self, codes: Tensor) -> tuple[Tensor, ...]:
        return codes.float(), torch.ones_like(codes, dtype=torch.float32)

    def rounded(self, scale: Tensor, number: int) -> Tensor:
        return self._rounded_scale(scale) if number == 0 else scale.to(torch.bfloat16).float()

    def store(self, scales_OG: Scales) -> Tensors:
        scale_OG, minimum_OG = scales_OG
        if self.format.double_quant:
            return self.format.nest_scales(scale_OG.flatten(), minimum_OG.flatten())
        return {
            "scale": scale_OG.flatten().to(torch.bfloat16),
            "minimum": minimum_OG.flatten().to(torch.bfloat16),
        }

    def read(self, stored: Tensors, rows: int) -> Scales:
        scale_G, minimum_G = self.format.read_scales(stored)
        return scale_G.float().view(rows, -1), minimum_G.float().view(rows, -1)

    def pack(self, codes_OI: Tensor) -> Tensor:
        return pack_bits(codes_OI.flatten(), self.format.bits)

    @staticmethod
    def _rounded_scale(scale: Tensor) -> Tensor:
        return scale.to(torch.bfloat16).clamp_min(torch.finfo(torch.bfloat16).tiny).float()


@dataclass(frozen=True)
class CodebookGrid:
    """``book[code] · absmax``; absmax in fp32, or in nested 8 bits."""

    format: Codebook

    @property
    def block(self) -> int:
        return self.format.block

    def _book(self, like: Tensor) -> Tensor:
        return CODEBOOKS[self.format.name].to(like.device)

    def ranges(self, weights: Tensor) -> tuple[Tensor, ...]:
        return (weights.abs().amax(-1),)

    def fit(self, ranges: tuple[Tensor, ...], shrink: float | Tensor) -> Scales:
        return ((shrink * ranges[0]).clamp_min(TINY),)

    def refit(self, weights: Tensor, codes: Tensor, column_weights: Tensor, full: Scales) -> Scales:
        values = self._book(weights)[codes.int()]
        size = weighted(values.square(), column_weights)
        scale = weighted(values * weights, column_weights) / size.clamp_min(TINY)
        return (torch.where(size > 0, scale, full[0]).clamp_min(TINY),)

    @property
    def points(self) -> Points:
        return Points(book=CODEBOOKS[self.format.name].sort().values)

    def codes(self, found: Tensor) -> Tensor:
        order = CODEBOOKS[self.format.name].argsort().to(found.device, torch.uint8)
        return order[found.int()]

    def quantize(self, weights: Tensor, scales: Scales) -> Tensor:
        # A nested absmax can be read as zero or below: its offset is that of many groups.
        return nearest(weights / scales[0].clamp_min(TINY)[..., None], self._book(weights))

    def nearest(self, weights: Tensor, scales: Scales) -> Tensor:
        scaled = weights / scales[0].clamp_min(TINY)[..., None]
        return nearest_values(scaled, self._book(weights)).mul_(scales[0][..., None])

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        return self._book(codes)[codes.int()] * scales[0][..., None]

    def basis(self, codes: Tensor) -> tuple[Tensor, ...]:
        return (self._book(codes)[codes.int()],)

    def rounded(self, scale: Tensor, number: int) -> Tensor:
        return scale.clamp_min(TINY)

    def store(self, scales_OG: Scales) -> Tensors:
        absmax_N = scales_OG[0].flatten()
        return encode_dynamic_8bit(absmax_N) if self.format.double_quant else {"absmax": absmax_N}

    def read(self, stored: Tensors, rows: int) -> Scales:
        absmax_N = decode_dynamic_8bit(stored) if self.format.double_quant else stored["absmax"]
        return (absmax_N.view(rows, -1),)

    def pack(self, codes_OI: Tensor) -> Tensor:
        return pack_bits(codes_OI.flatten(), self.format.bits)


@dataclass(frozen=True)
class RowGrid:
    """``code · scale`` with one fp32 scale for each row."""

    format: Int8Row
    block = None

    def ranges(self, weights: Tensor) -> tuple[Tensor, ...]:
        return (weights.abs().amax(-1),)

    def fit(self, ranges: tuple[Tensor, ...], shrink: float | Tensor) -> Scales:
        return ((shrink * ranges[0]).clamp_min(TINY) / 127,)

    def refit(self, weights: Tensor, codes: Tensor, column_weights: Tensor, full: Scales) -> Scales:
        codes = codes.float()
        size = weighted(codes.square(), column_weights)
        scale = weighted(codes * weights, column_weights) / size.clamp_min(TINY)
        return (torch.where(size > 0, scale, full[0]).clamp_min(TINY),)

    @property
    def points(self) -> Points:
        return Points(-127, 127)

    def codes(self, found: Tensor) -> Tensor:
        return found.to(torch.int8)

    def quantize(self, weights: Tensor, scales: Scales) -> Tensor:
        return self.codes(self._steps(weights, scales))

    def nearest(self, weights: Tensor, scales: Scales) -> Tensor:
        return self._steps(weights, scales).mul_(scales[0][..., None])

    def _steps(self, weights: Tensor, scales: Scales) -> Tensor:
        """The codes as fp32."""
        return (weights / scales[0][..., None]).round_().clamp_(-127, 127)

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        return codes.float() * scales[0][..., None]

    def basis(self, codes: Tensor) -> tuple[Tensor, ...]:
        return (codes.float(),)

    def rounded(self, scale: Tensor, number: int) -> Tensor:
        return scale.clamp_min(TINY)

    def store(self, scales_OG: Scales) -> Tensors:
        return {"scale": scales_OG[0].flatten()}

    def read(self, stored: Tensors, rows: int) -> Scales:
        return (stored["scale"].view(rows, 1),)

    def pack(self, codes_OI: Tensor) -> Tensor:
        return codes_OI.contiguous()


@dataclass(frozen=True)
class SymmetricGrid:
    """``(code - zero) · scale`` with a bf16 scale."""

    format: Symmetric

    @property
    def block(self) -> int:
        return self.format.block

    def ranges(self, weights: Tensor) -> tuple[Tensor, ...]:
        return weights.amin(-1), weights.amax(-1)

    def fit(self, ranges: tuple[Tensor, ...], shrink: float | Tensor) -> Scales:
        return (self.format.scale_of(shrink * ranges[0], shrink * ranges[1]).float(),)

    def refit(self, weights: Tensor, codes: Tensor, column_weights: Tensor, full: Scales) -> Scales:
        (steps,) = self.basis(codes)
        size = weighted(steps.square(), column_weights)
        scale = weighted(steps * weights, column_weights) / size.clamp_min(TINY)
        return (self.rounded(torch.where(size > 0, scale, full[0]), 0),)

    @property
    def points(self) -> Points:
        return Points(*self.format.value_range)

    def codes(self, found: Tensor) -> Tensor:
        return (found + self.format.zero).to(torch.uint8)

    def quantize(self, weights: Tensor, scales: Scales) -> Tensor:
        return self.codes(self._steps(weights, scales))

    def nearest(self, weights: Tensor, scales: Scales) -> Tensor:
        return self._steps(weights, scales).mul_(scales[0][..., None])

    def _steps(self, weights: Tensor, scales: Scales) -> Tensor:
        """The codes as fp32, from −zero."""
        return (weights / scales[0][..., None]).round_().clamp_(*self.format.value_range)

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        return self.basis(codes)[0] * scales[0][..., None]

    def basis(self, codes: Tensor) -> tuple[Tensor, ...]:
        return (codes.float() - self.format.zero,)

    def rounded(self, scale: Tensor, number: int) -> Tensor:
        return scale.to(torch.bfloat16).clamp_min(torch.finfo(torch.bfloat16).tiny).float()

    def store(self, scales_OG: Scales) -> Tensors:
        return {"scale": scales_OG[0].flatten().to(torch.bfloat16)}

    def read(self, stored: Tensors, rows: int) -> Scales:
        return (stored["scale"].float().view(rows, -1),)

    def pack(self, codes_OI: Tensor) -> Tensor:
        return pack_bits(codes_OI.flatten(), self.format.bits)


def grid_of(fmt: Format) -> Grid:
    """The grid of ``fmt``. Raises :class:`QuantError` for a format without codes, such as bf16."""
    if isinstance(fmt, Affine):
        return AffineGrid(fmt)
    if isinstance(fmt, Codebook):
        return CodebookGrid(fmt)
    if isinstance(fmt, Int8Row):
        return RowGrid(fmt)
    if isinstance(fmt, Symmetric):
        return SymmetricGrid(fmt)
    raise QuantError(
        f"{fmt} has no grid of codes to choose from; give the quantizer rtn, which rounds as the format does"
    )


def nested(fmt: Format) -> bool:
    """Whether the scales of ``fmt`` are stored in 8 bits under scales of their own, which span rows."""
    return isinstance(fmt, (Codebook, Affine)) and fmt.double_quant
