"""The code books of the 4-bit formats and the 8-bit one that double quantization uses for scales.

NF4: 16 quantiles of N(0, 1), scaled to [-1, 1] and holding an exact zero (QLoRA, Dettmers et al. 2023, appendix E).
FP4: sign, 2 exponent bits, 1 mantissa bit, scaled to [-1, 1] (bitsandbytes' e2m1 with its own subnormal).
Dynamic 8-bit: sign, a run of zeros as decimal exponent, the rest a linear fraction (Dettmers 2016, 8-bit approximations).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitrank_quant import kernels

_NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip
_FP4_POSITIVE = [0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25]

CODEBOOKS: dict[str, Tensor] = {
    "nf4": torch.tensor(_NF4),
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
    """Quantize block scales: subtract their mean, then dynamic 8-bit in blocks of 256. QLoRA section 3, double quantization."""
    offset = absmax_N.mean()
    centred_MB = torch.nn.functional.pad(absmax_N - offset, (0, -absmax_N.numel() % _SCALE_BLOCK)).view(-1, _SCALE_BLOCK)
    outer_M = centred_MB.abs().amax(1)
    scaled_MB = centred_MB / outer_M.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    book = DYNAMIC_8BIT.to(absmax_N.device)
    codes_N = torch.bucketize(scaled_MB, (book[1:] + book[:-1]) / 2).to(torch.uint8).flatten()[: absmax_N.numel()]
    return {"absmax": codes_N.clone(), "outer": outer_M, "offset": offset}


def decode_dynamic_8bit(tensors: dict[str, Tensor], at: slice | Tensor = slice(None)) -> Tensor:
    """The block scales (fp32) that :func:`encode_dynamic_8bit` stored: all, neighbours (a slice without a step), or those at some places,
    which count from 0."""
    codes_N, outer_M, offset = tensors["absmax"][at], tensors["outer"], tensors["offset"]
    book = DYNAMIC_8BIT.to(outer_M.device)
    if isinstance(at, slice):
        start, stop, _ = at.indices(tensors["absmax"].numel())
        if (made := kernels.nested_scales(codes_N, book, outer_M, offset, start)) is not None:
            return made
        at = torch.arange(start, stop, device=outer_M.device)
    return book[codes_N.int()] * outer_M[at // _SCALE_BLOCK] + offset
