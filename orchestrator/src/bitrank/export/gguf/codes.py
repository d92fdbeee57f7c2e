"""Blocks of GGUF from the codes and scales of this project's formats: no weight is rounded again.

Codes are equal. Scales and minima become fp16: exact for bf16 ones of a magnitude from 2^-17 to 65504, else
rounded to 11 bits. A block of 32 weights stores its first 16 codes in the low halves of bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from bitrank_quant import unpack_bits
from torch import Tensor

Array = np.ndarray[Any, Any]
Shape = tuple[int, int]
BLOCK = 32


def q4_1_of_affine(tensors: dict[str, Tensor], shape: Shape) -> Array:
    """Q4_1 rows of the (out, in) matrix ``shape``, stored as 4-bit affine groups of 32."""
    codes_NB = _codes(tensors, 4, shape)
    return _joined(shape, _fp16(tensors["scale"]), _fp16(tensors["minimum"]), _nibbles(codes_NB))


def q5_1_of_affine(tensors: dict[str, Tensor], shape: Shape) -> Array:
    """Q5_1 rows of the (out, in) matrix ``shape``, stored as 5-bit affine groups of 32."""
    codes_NB = _codes(tensors, 5, shape)
    high = np.packbits(codes_NB >> 4, axis=1, bitorder="little")
    return _joined(shape, _fp16(tensors["scale"]), _fp16(tensors["minimum"]), high, _nibbles(codes_NB & 15))


def q4_0_of_symmetric(tensors: dict[str, Tensor], shape: Shape) -> Array:
    """Q4_0 rows of the (out, in) matrix ``shape``, stored as 4-bit symmetric groups of 32."""
    return _joined(shape, _fp16(tensors["scale"]), _nibbles(_codes(tensors, 4, shape)))


def q5_0_of_symmetric(tensors: dict[str, Tensor], shape: Shape) -> Array:
    """Q5_0 rows of the (out, in) matrix ``shape``, stored as 5-bit symmetric groups of 32."""
    codes_NB = _codes(tensors, 5, shape)
    high = np.packbits(codes_NB >> 4, axis=1, bitorder="little")
    return _joined(shape, _fp16(tensors["scale"]), high, _nibbles(codes_NB & 15))


def q8_0_of_symmetric(tensors: dict[str, Tensor], shape: Shape) -> Array:
    """Q8_0 rows of the (out, in) matrix ``shape``, stored as 8-bit symmetric groups of 32."""
    signed_NB = (_codes(tensors, 8, shape).astype(np.int16) - 128).astype(np.int8)
    return _joined(shape, _fp16(tensors["scale"]), signed_NB.view(np.uint8))


def q8_0_of_int8_rows(tensors: dict[str, Tensor], shape: Shape) -> Array:
    """Q8_0 rows of the (out, in) matrix ``shape``, stored as int8 with a scale for each row."""
    codes_NB = tensors["codes"].cpu().numpy().reshape(-1, BLOCK)
    scale_N = tensors["scale"].repeat_interleave(shape[1] // BLOCK)
    return _joined(shape, _fp16(scale_N), codes_NB.view(np.uint8))


def _codes(tensors: dict[str, Tensor], bits: int, shape: Shape) -> Array:
    codes: Array = unpack_bits(tensors["codes"].cpu(), bits, shape[0] * shape[1]).numpy()
    return codes.reshape(-1, BLOCK)


def _nibbles(codes_NB: Array) -> Array:
    packed: Array = codes_NB[:, : BLOCK // 2] | codes_NB[:, BLOCK // 2 :] << 4
    return packed


def _fp16(values: Tensor) -> Array:
    narrow: Array = values.detach().cpu().float().to(torch.float16).numpy()
    return narrow.reshape(-1, 1).view(np.uint8)


def _joined(shape: Shape, *parts: Array) -> Array:
    return np.concatenate(parts, axis=1).reshape(shape[0], -1)
