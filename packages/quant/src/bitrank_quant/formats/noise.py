"""Stand-ins for low-bit formats: 16-bit weights plus random noise as large as a format's rounding error.

Studies that simulate quantization replace rounding by noise of the same second moment. A stand-in exists to
test this replacement. It stores 16 bits a weight, and counts them: it saves nothing, and no planner offers it
unless it is named.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bitrank_quant import kernels
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format, Tensors, take_rows
from bitrank_quant.formats.float import Float

_STORED = torch.bfloat16


@dataclass(frozen=True)
class Noise:
    """``w + n`` in bf16: n is Gaussian, and Σ n² over a group is the squared rounding error of ``imitated``.

    A group is one of ``imitated``, or a row if that has no groups. The seed is a checksum of the weights: a
    matrix always gets the same noise, and equal shapes get different noise. Raises :class:`QuantError` for a
    format of 16 or more bits.
    """

    imitated: Format

    bits = 16
    block = None

    def __post_init__(self) -> None:
        if isinstance(self.imitated, (Float, Noise)):
            raise QuantError(
                f"a stand-in imitates the rounding of a low-bit format, got {self.imitated}; give, for "
                "example, noise16-int4-g64"
            )

    @property
    def about(self) -> str:
        return f"a stand-in for {self.imitated} in studies: 16-bit weights plus noise of its error's size"

    @property
    def value_range(self) -> tuple[float, float]:
        info = torch.finfo(_STORED)
        return info.min, info.max

    def encode(self, weight_OI: Tensor) -> Tensors:
        weight_OI = weight_OI.detach().float()
        return {"weight": (weight_OI + self.noise(weight_OI)).to(_STORED)}

    def noise(self, weight_OI: Tensor) -> Tensor:
        """The noise (out, in) in fp32 that :meth:`encode` adds to ``weight_OI`` before rounding to bf16."""
        weight_OI = weight_OI.detach().float()
        shape = (weight_OI.shape[0], weight_OI.shape[1])
        decoded_OI = self.imitated.decode(self.imitated.encode(weight_OI), shape, torch.float32)
        error_GB = self._groups(decoded_OI - weight_OI)
        generator = torch.Generator().manual_seed(zlib.crc32(weight_OI.cpu().contiguous().numpy().tobytes()))
        drawn_GB = self._groups(torch.randn(shape, generator=generator).to(weight_OI.device))
        least = torch.finfo(torch.float32).tiny
        powers_G = error_GB.square().sum(1) / drawn_GB.square().sum(1).clamp_min(least)
        scaled_OI = (drawn_GB * powers_G.sqrt()[:, None]).reshape(shape[0], -1)
        return scaled_OI[:, : shape[1]]

    def _groups(self, values_OI: Tensor) -> Tensor:
        """(out, in) → (groups, group size), rows padded with zeros, which have no power."""
        width = self.imitated.block or values_OI.shape[1]
        return F.pad(values_OI, (0, -values_OI.shape[1] % width)).reshape(-1, width)

    def decode(
        self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, scratch: kernels.Scratch = None
    ) -> Tensor:
        return tensors["weight"].to(dtype)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        return take_rows(tensors, ids_N, rows)

    def nbytes(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] * _STORED.itemsize

    def __str__(self) -> str:
        return f"noise16-{self.imitated}"


def imitated_format(fmt: Format) -> Format | None:
    """The format that the stand-in ``fmt`` imitates; None for a format that is no stand-in."""
    return fmt.imitated if isinstance(fmt, Noise) else None
