"""Tensor types of GGUF that matrices are exported in, and the choice of one for a planned format.

A type ``holds`` a format if it stores the same codes; then ``from_codes`` converts them, and no weight is
rounded again. Other formats get the nearest type at or below their bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gguf
import numpy as np
from bitrank_quant import Affine, Float, Format, Int8Row
from gguf.quants import dequantize, quantize
from torch import Tensor

from bitrank.export.gguf import codes, kquants

Array = np.ndarray[Any, Any]
Shape = tuple[int, int]


FromCodes = Callable[[dict[str, Tensor], Shape], Array]


@dataclass(frozen=True)
class Chosen:
    """The format in which a quantizer chooses the codes of a tensor type, and the conversion of its codes."""

    format: str
    from_codes: FromCodes


def _nothing(_fmt: Format) -> bool:
    return False


@dataclass(frozen=True)
class TensorType:
    """A tensor type: bits of a code, the encoder of an (O, I) fp32 matrix into (O, bytes) rows.

    ``from_codes`` converts the tensors of a format that the type ``holds``; None: the type stores plain
    numbers, which the encoder casts. ``chosen``: how a quantizer chooses its codes; None: it cannot.
    """

    name: str
    bits: int
    encode: Callable[[Array], Array]
    holds: Callable[[Format], bool] = _nothing
    from_codes: FromCodes | None = None
    chosen: Chosen | None = None

    @property
    def ggml(self) -> gguf.GGMLQuantizationType:
        """The type in the library's enumeration."""
        return gguf.GGMLQuantizationType[self.name]

    @property
    def block(self) -> int:
        """Weights of a block; rows are whole blocks."""
        return gguf.GGML_QUANT_SIZES[self.ggml][0]

    @property
    def bits_per_weight(self) -> float:
        """Bits of a weight with its share of the scales."""
        weights, size = gguf.GGML_QUANT_SIZES[self.ggml]
        return 8 * size / weights

    @property
    def file_type(self) -> gguf.LlamaFileType:
        """The library's name of files that consist mostly of this type."""
        names = (f"ALL_{self.name}", f"MOSTLY_{self.name}", f"MOSTLY_{self.name}_M")
        return next(one for one in gguf.LlamaFileType if one.name in names)

    def decode(self, rows: Array) -> Array:
        """The (O, I) fp32 matrix of (O, bytes) rows."""
        return dequantize(rows, self.ggml)


def _by_library(weight_OI: Array, name: str) -> Array:
    rows = quantize(np.ascontiguousarray(weight_OI, np.float32), gguf.GGMLQuantizationType[name])
    return rows if rows.dtype == np.uint8 else rows.view(np.uint8)


def _number(name: str, own: str) -> TensorType:
    bits = 8 * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    return TensorType(
        name,
        bits,
        partial(_by_library, name=name),
        lambda fmt: isinstance(fmt, Float) and fmt.name == own,
    )


def _affine(bits: int) -> Callable[[Format], bool]:
    def holds(fmt: Format) -> bool:
        if not isinstance(fmt, Affine) or fmt.double_quant:
            return False
        return fmt.bits == bits and fmt.block == codes.BLOCK

    return holds


# In order of preference among types of equal bits and size.
_TYPES = [
    _number("F32", "fp32"),
    _number("BF16", "bf16"),
    _number("F16", "fp16"),
    TensorType(
        "Q8_0",
        8,
        partial(_by_library, name="Q8_0"),
        lambda fmt: isinstance(fmt, Int8Row),
        codes.q8_0_of_int8_rows,
        Chosen("sym8-g32", codes.q8_0_of_symmetric),
    ),
    TensorType("Q6_K", 6, kquants.encode_q6_k),
    TensorType("Q5_K", 5, kquants.encode_q5_k),
    TensorType(
        "Q5_1",
        5,
        partial(_by_library, name="Q5_1"),
        _affine(5),
        codes.q5_1_of_affine,
        Chosen("int5-g32", codes.q5_1_of_affine),
    ),
    TensorType(
        "Q5_0",
        5,
        partial(_by_library, name="Q5_0"),
        chosen=Chosen("sym5-g32", codes.q5_0_of_symmetric),
    ),
    TensorType("Q4_K", 4, kquants.encode_q4_k),
    TensorType(
        "Q4_1",
        4,
        partial(_by_library, name="Q4_1"),
        _affine(4),
        codes.q4_1_of_affine,
        Chosen("int4-g32", codes.q4_1_of_affine),
    ),
    TensorType(
        "Q4_0",
        4,
        partial(_by_library, name="Q4_0"),
        chosen=Chosen("sym4-g32", codes.q4_0_of_symmetric),
    ),
    TensorType("Q3_K", 3, kquants.encode_q3_k),
    TensorType("Q2_K", 2, kquants.encode_q2_k),
]
TENSOR_TYPES: dict[str, TensorType] = {one.name: one for one in _TYPES}


def type_for(fmt: Format, shape: Shape) -> TensorType:
    """The type of an (out, in) matrix of ``shape`` whose planned format is ``fmt``.

    The one that holds the format; else the most bits of a code at or below those of the format, and among
    these the largest that takes no more bytes than the format, or the smallest if all take more. A matrix
    whose rows are whole blocks of no such type gets the smallest type that its rows fit.
    """
    fits = [one for one in TENSOR_TYPES.values() if shape[1] % one.block == 0]
    same = next((one for one in fits if one.holds(fmt)), None)
    if same is not None:
        return same
    below = [one for one in fits if one.bits <= fmt.bits]
    if not below:
        return min(fits, key=lambda one: one.bits_per_weight)
    most = max(one.bits for one in below)
    nearest = [one for one in below if one.bits == most]
    planned = 8 * fmt.nbytes(shape) / (shape[0] * shape[1])
    within = [one for one in nearest if one.bits_per_weight <= planned]
    if within:
        return max(within, key=lambda one: one.bits_per_weight)
    return min(nearest, key=lambda one: one.bits_per_weight)
