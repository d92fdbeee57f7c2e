"""8-bit floating point: torch's cast to ``float8_e4m3fn``, with one scale per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitrank_quant import kernels
from bitrank_quant.formats.base import Tensors, take_rows

_DTYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(_DTYPE).max  # 448


@dataclass(frozen=True)
class Float8:
    """``w ≈ e4m3(w / scale) · scale`` with one fp32 scale per row, absmax(row) / 448.

    The numbers are those of Micikevicius et al. 2022: four bits of exponent, three of mantissa, no infinity.
    Codes are stored as bytes (uint8), because many operations do not accept torch's 8-bit floats.
    """

    bits = 8
    block = None
    value_range = (-_LARGEST, _LARGEST)
    about = "8-bit floats (e4m3), one fp32 scale per row"

    def encode(self, weight_OI: Tensor) -> Tensors:
        weight_OI = weight_OI.detach().float()
        scale_O = weight_OI.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
        # The cast maps values above the largest to NaN, and a quotient can exceed it by one rounding.
        scaled_OI = (weight_OI / scale_O[:, None]).clamp(-_LARGEST, _LARGEST)
        return {"codes": scaled_OI.to(_DTYPE).view(torch.uint8), "scale": scale_O}

    def decode(
        self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, scratch: kernels.Scratch = None
    ) -> Tensor:
        return (tensors["codes"].view(_DTYPE).float() * tensors["scale"][:, None]).to(dtype)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        return take_rows(tensors, ids_N, rows)

    def nbytes(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] + 4 * shape[0]

    def __str__(self) -> str:
        return "fp8"
