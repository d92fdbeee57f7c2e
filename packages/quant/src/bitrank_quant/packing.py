"""Codes of 2 to 8 bits, packed without gaps.

Eight codes of b bits fill exactly b bytes, so packing works on groups of eight: 3-bit codes take 3 bits,
not 4.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """Number of bytes of ``count`` packed codes of ``bits`` bits."""
    if bits in (2, 4, 8):
        return -(-count * bits // 8)
    return -(-count // 8) * bits


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes (count,) → uint8 bytes (packed_bytes(count, bits),)."""
    if bits == 8:
        return codes.contiguous()
    if bits in (2, 4):
        per_byte = 8 // bits
        codes = _padded(codes, per_byte).view(-1, per_byte)
        # First code in the high bits, as in bitsandbytes, so that 4-bit codes can be compared byte by byte.
        shifts = torch.arange(per_byte - 1, -1, -1, device=codes.device, dtype=torch.uint8) * bits
        return (codes << shifts).sum(1).to(torch.uint8)
    groups = _padded(codes, 8).view(-1, 8).to(torch.int64)
    words = (groups << (torch.arange(8, device=codes.device) * bits)).sum(1)
    bytes_ = (words[:, None] >> (torch.arange(bits, device=codes.device) * 8)) & 255
    return bytes_.to(torch.uint8).flatten()


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of :func:`pack_bits`: uint8 codes (count,)."""
    if bits == 8:
        return packed[:count]
    if bits == 4:
        return torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[:count]
    if bits == 2:
        return torch.stack([(packed >> shift) & 3 for shift in (6, 4, 2, 0)], dim=-1).flatten()[:count]
    bytes_ = packed.view(-1, bits).to(torch.int64)
    words = (bytes_ << (torch.arange(bits, device=packed.device) * 8)).sum(1)
    codes = (words[:, None] >> (torch.arange(8, device=packed.device) * bits)) & (2**bits - 1)
    return codes.to(torch.uint8).flatten()[:count]


def _padded(codes: Tensor, multiple: int) -> Tensor:
    return torch.nn.functional.pad(codes, (0, -codes.numel() % multiple))
