"""Codes of 2 to 8 bits, packed without gaps.

Eight codes of b bits fill exactly b bytes, so packing works on groups of eight: 3-bit codes take 3 bits,
not 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitrank_quant.errors import QuantError


def packed_bytes(count: int, bits: int) -> int:
    """Number of bytes of ``count`` packed codes of ``bits`` bits."""
    if bits in (2, 4, 8):
        return -(-count * bits // 8)
    return -(-count // 8) * bits


def end_on_bytes(count: int, bits: int) -> bool:
    """Whether rows of ``count`` codes that are packed one after the other end on whole bytes."""
    return bits % 8 == 0 or packed_bytes(count, bits) * 8 == count * bits


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


def little_endian_words(codes_OI: Tensor, bits: int) -> Tensor:
    """uint8 codes (O, I) → int32 words (O, I · bits / 32): a row is one bit stream, lowest bits first.

    The layout of MLX and of compressed-tensors. Raises :class:`QuantError` if rows end within a word.
    """
    rows, columns = codes_OI.shape
    if columns * bits % 32:
        raise QuantError(
            f"{columns} codes of {bits} bits end within a 32-bit word; rows of whole words need a multiple "
            f"of {32 // math.gcd(32, bits)} columns"
        )
    # 32 codes fill exactly ``bits`` words. A code may cross the boundary of two words.
    codes_G32 = codes_OI.reshape(-1, 32 if columns % 32 == 0 else columns).to(torch.int64)
    starts = torch.arange(codes_G32.shape[1], device=codes_OI.device) * bits
    shifted_G32 = codes_G32 << starts % 32
    words_GW = shifted_G32.new_zeros(len(codes_G32), codes_G32.shape[1] * bits // 32 + 1)
    index_G32 = (starts // 32).expand_as(codes_G32)
    words_GW.scatter_add_(1, index_G32, shifted_G32 & 0xFFFFFFFF)
    words_GW.scatter_add_(1, index_G32 + 1, shifted_G32 >> 32)
    words_OW = words_GW[:, :-1].reshape(rows, -1)
    return torch.where(words_OW >= 2**31, words_OW - 2**32, words_OW).to(torch.int32)


def _padded(codes: Tensor, multiple: int) -> Tensor:
    return torch.nn.functional.pad(codes, (0, -codes.numel() % multiple))
