"""Encoders of the K types: blocks of 256 weights, whose sub-blocks have integer scales under one fp16 scale.

The library ``gguf`` decodes these types and does not encode them. Layouts are those of its decoders, which
the tests use as the reference. Scales are searched as ggml does: candidates around the range of a sub-block,
each refitted by least squares to its codes; the one with the least squared error is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BLOCK = 256
_CANDIDATES = np.linspace(-1.0, 1.0, 21, dtype=np.float32)  # added to the largest code of a sub-block


def encode_q2_k(weight_OI: Array) -> Array:
    """Codes of 2 bits; 4-bit scale and minimum for 16 weights. (O, I) fp32 → (O, bytes)."""
    blocks_NSB = _sub_blocks(weight_OI, 16)
    (d_N, scale_NS), (dmin_N, minimum_NS), codes_NSB = _affine(blocks_NSB, top=3, top_scale=15)
    scales_NS = scale_NS | minimum_NS << 4
    quarters = codes_NSB.reshape(-1, 2, 4, 32)
    return _rows(weight_OI, scales_NS, _interleave(quarters, 2), _fp16(d_N), _fp16(dmin_N))


def encode_q3_k(weight_OI: Array) -> Array:
    """Symmetric codes of 3 bits; 6-bit scale for 16 weights. (O, I) fp32 → (O, bytes)."""
    d_N, scale_NS, codes_NSB = _symmetric(_sub_blocks(weight_OI, 16), half=4, half_scale=32)
    high = _interleave((codes_NSB >> 2).reshape(-1, 1, 8, 32), 1)
    low = _interleave((codes_NSB & 3).reshape(-1, 2, 4, 32), 2)
    stored_NS = (scale_NS + 32).astype(np.uint8)
    low_scales = _interleave((stored_NS & 15).reshape(-1, 1, 2, 8), 4)
    high_scales = _interleave((stored_NS >> 4).reshape(-1, 1, 4, 4), 2)
    return _rows(weight_OI, high, low, low_scales, high_scales, _fp16(d_N))


def encode_q4_k(weight_OI: Array) -> Array:
    """Codes of 4 bits; 6-bit scale and minimum for 32 weights. (O, I) fp32 → (O, bytes)."""
    blocks_NSB = _sub_blocks(weight_OI, 32)
    (d_N, scale_NS), (dmin_N, minimum_NS), codes_NSB = _affine(blocks_NSB, top=15, top_scale=63)
    codes = _interleave(codes_NSB.reshape(-1, 4, 2, 32), 4)
    return _rows(weight_OI, _fp16(d_N), _fp16(dmin_N), _pack_scales(scale_NS, minimum_NS), codes)


def encode_q5_k(weight_OI: Array) -> Array:
    """Codes of 5 bits; 6-bit scale and minimum for 32 weights. (O, I) fp32 → (O, bytes)."""
    blocks_NSB = _sub_blocks(weight_OI, 32)
    (d_N, scale_NS), (dmin_N, minimum_NS), codes_NSB = _affine(blocks_NSB, top=31, top_scale=63)
    high = _interleave((codes_NSB >> 4).reshape(-1, 1, 8, 32), 1)
    low = _interleave((codes_NSB & 15).reshape(-1, 4, 2, 32), 4)
    return _rows(weight_OI, _fp16(d_N), _fp16(dmin_N), _pack_scales(scale_NS, minimum_NS), high, low)


def encode_q6_k(weight_OI: Array) -> Array:
    """Symmetric codes of 6 bits; 8-bit scale for 16 weights. (O, I) fp32 → (O, bytes)."""
    d_N, scale_NS, codes_NSB = _symmetric(_sub_blocks(weight_OI, 16), half=32, half_scale=128)
    low = _interleave((codes_NSB & 15).reshape(-1, 2, 2, 64), 4)
    high = _interleave((codes_NSB >> 4).reshape(-1, 2, 4, 32), 2)
    return _rows(weight_OI, low, high, scale_NS.astype(np.int8).view(np.uint8), _fp16(d_N))


def _sub_blocks(weight_OI: Array, size: int) -> Array:
    return weight_OI.astype(np.float32, copy=False).reshape(-1, BLOCK // size, size)


def _affine(
    blocks_NSB: Array, top: int, top_scale: int
) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
    """(d, scales), (dmin, minima) and codes with ``w ≈ d · scale · code - dmin · minimum``."""
    scale_NS, minimum_NS = _fit_affine(blocks_NSB, top)
    d_N, scales_NS = _integers(scale_NS, top_scale)
    dmin_N, minima_NS = _integers(-minimum_NS, top_scale)
    step_NS1 = (d_N[:, None] * scales_NS)[..., None]
    shifted_NSB = blocks_NSB + (dmin_N[:, None] * minima_NS)[..., None]
    codes_NSB = np.rint(_divide(shifted_NSB, step_NS1)).clip(0, top).astype(np.uint8)
    return (d_N, scales_NS.astype(np.uint8)), (dmin_N, minima_NS.astype(np.uint8)), codes_NSB


def _fit_affine(blocks_NSB: Array, top: int) -> tuple[Array, Array]:
    """Scale and minimum ≤ 0 of each sub-block with the least squared error among the candidates."""
    size = blocks_NSB.shape[-1]
    low_NS = np.minimum(blocks_NSB.min(-1), 0)
    span_NS = blocks_NSB.max(-1) - low_NS
    sum_NS, best_NS = blocks_NSB.sum(-1), np.full(span_NS.shape, np.inf, np.float32)
    scale_NS, minimum_NS = np.zeros_like(span_NS), low_NS.copy()
    for extra in _CANDIDATES:
        inverse_NS = _divide(np.float32(top + extra), span_NS)
        codes_NSB = np.rint((blocks_NSB - low_NS[..., None]) * inverse_NS[..., None]).clip(0, top)
        codes_NS, squares_NS = codes_NSB.sum(-1), (codes_NSB**2).sum(-1)
        products_NS = (codes_NSB * blocks_NSB).sum(-1)
        determinant_NS = size * squares_NS - codes_NS**2
        fitted_NS = _divide(size * products_NS - sum_NS * codes_NS, determinant_NS)
        lowest_NS = _divide(squares_NS * sum_NS - codes_NS * products_NS, determinant_NS)
        # Minima are subtracted and stored without a sign; equal codes determine one number only.
        through_zero = (lowest_NS > 0) | (determinant_NS == 0)
        fitted_NS = np.where(through_zero, _divide(products_NS, squares_NS), fitted_NS)
        lowest_NS = np.where(through_zero, 0, lowest_NS)
        values_NSB = codes_NSB * fitted_NS[..., None] + lowest_NS[..., None]
        error_NS = ((values_NSB - blocks_NSB) ** 2).sum(-1)
        better = (error_NS < best_NS) & (fitted_NS > 0)
        best_NS = np.where(better, error_NS, best_NS)
        scale_NS = np.where(better, fitted_NS, scale_NS)
        minimum_NS = np.where(better, lowest_NS, minimum_NS)
    return scale_NS, minimum_NS


def _symmetric(blocks_NSB: Array, half: int, half_scale: int) -> tuple[Array, Array, Array]:
    """d, signed integer scales, and codes from 0 with ``w ≈ d · scale · (code - half)``."""
    scale_NS = _fit_symmetric(blocks_NSB, half)
    at = np.abs(scale_NS).argmax(-1)[:, None]
    # The largest scale becomes -half_scale: the signed range has one step more on its negative side.
    d_N = _as_fp16(np.take_along_axis(scale_NS, at, -1)[:, 0] / -half_scale)
    scales_NS = np.rint(_divide(scale_NS, d_N[:, None])).clip(-half_scale, half_scale - 1)
    step_NS1 = (d_N[:, None] * scales_NS)[..., None]
    codes_NSB = np.rint(_divide(blocks_NSB, step_NS1)).clip(-half, half - 1) + half
    return d_N, scales_NS.astype(np.int16), codes_NSB.astype(np.uint8)


def _fit_symmetric(blocks_NSB: Array, half: int) -> Array:
    """Signed scale of each sub-block with the least squared error among the candidates."""
    at = np.abs(blocks_NSB).argmax(-1)[..., None]
    peak_NS = np.take_along_axis(blocks_NSB, at, -1)[..., 0]
    scale_NS, best_NS = np.zeros_like(peak_NS), np.full(peak_NS.shape, -1, np.float32)
    for extra in _CANDIDATES:
        inverse_NS = _divide(np.float32(-(half + extra)), peak_NS)
        codes_NSB = np.rint(blocks_NSB * inverse_NS[..., None]).clip(-half, half - 1)
        products_NS, squares_NS = (codes_NSB * blocks_NSB).sum(-1), (codes_NSB**2).sum(-1)
        fitted_NS = _divide(products_NS, squares_NS)
        gain_NS = fitted_NS * products_NS  # the squared error is Σ w² minus this
        better = gain_NS > best_NS
        best_NS, scale_NS = np.where(better, gain_NS, best_NS), np.where(better, fitted_NS, scale_NS)
    return scale_NS


def _integers(values_NS: Array, top: int) -> tuple[Array, Array]:
    """fp16 step of each block, as fp32, and ``values_NS`` ≥ 0 in whole steps from 0 to ``top``."""
    step_N = _as_fp16(values_NS.max(-1) / top)
    return step_N, np.rint(_divide(values_NS, step_N[:, None])).clip(0, top).astype(np.int16)


def _divide(numerator: Array | np.float32, denominator: Array) -> Array:
    """The quotient, with 0 where the denominator is 0."""
    safe = np.where(denominator == 0, 1, denominator)
    return np.where(denominator == 0, 0, numerator / safe).astype(np.float32)


def _as_fp16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


def _fp16(values_N: Array) -> Array:
    """fp16 values as two bytes each, (N, 2)."""
    return values_N.astype(np.float16)[:, None].view(np.uint8)


def _interleave(parts: Array, bits: int) -> Array:
    """(N, chunks, parts, B) codes of ``bits`` bits → (N, chunks · B) bytes; part k is shifted by k · bits."""
    packed = np.zeros((*parts.shape[:2], parts.shape[3]), np.uint8)
    for part in range(parts.shape[2]):
        packed |= parts[:, :, part].astype(np.uint8) << np.uint8(part * bits)
    return packed.reshape(len(parts), -1)


def _pack_scales(scale_NS: Array, minimum_NS: Array) -> Array:
    """8 scales and 8 minima of 6 bits in 12 bytes."""
    first = scale_NS[:, :4] | (scale_NS[:, 4:] >> 4) << 6
    second = minimum_NS[:, :4] | (minimum_NS[:, 4:] >> 4) << 6
    third = (scale_NS[:, 4:] & 15) | (minimum_NS[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=1)


def _rows(weight_OI: Array, *parts: Array) -> Array:
    """The (N, bytes) parts of each block, joined, as (O, bytes of a row)."""
    return np.concatenate([part.astype(np.uint8) for part in parts], axis=1).reshape(len(weight_OI), -1)
