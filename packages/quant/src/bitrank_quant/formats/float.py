"""Floating-point formats: weights stored without codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitrank_quant import kernels
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Tensors, take_rows

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Float:
    """A floating-point format: the weight itself, cast."""

    name: str

    @property
    def dtype(self) -> torch.dtype:
        return FLOATS[self.name]

    @property
    def bits(self) -> int:
        return self.dtype.itemsize * 8

    block = None
    about = "the weight itself, cast"

    @property
    def value_range(self) -> tuple[float, float]:
        info = torch.finfo(self.dtype)
        return info.min, info.max

    def encode(self, weight_OI: Tensor) -> Tensors:
        return {"weight": weight_OI.detach().to(self.dtype).contiguous()}

    def decode(
        self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, scratch: kernels.Scratch = None
    ) -> Tensor:
        weight_OI = tensors["weight"]
        if (
            scratch is None
            or weight_OI.dtype == dtype
            or weight_OI.device.type != "cpu"
            or torch.compiler.is_compiling()
        ):
            return weight_OI.to(dtype)
        return scratch(shape, dtype).copy_(weight_OI)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        return take_rows(tensors, ids_N, rows)

    def nbytes(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] * self.dtype.itemsize

    def __str__(self) -> str:
        return self.name


def float_format(dtype: torch.dtype) -> Float:
    """The floating-point format of ``dtype``. Raises :class:`QuantError` if there is none."""
    for name, stored in FLOATS.items():
        if stored == dtype:
            return Float(name)
    raise QuantError(f"no format holds {dtype}; there are {', '.join(FLOATS)}")
