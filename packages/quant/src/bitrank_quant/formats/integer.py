"""Integer formats: symmetric with one scale per row, and affine with scale and minimum per group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitrank_quant import kernels
from bitrank_quant.formats.base import Tensors, block_count, blocks, take_rows, unblock
from bitrank_quant.packing import pack_bits, packed_bytes, unpack_bits


@dataclass(frozen=True)
class Int8Row:
    """Symmetric int8 with one fp32 scale per row: ``w ≈ code · absmax(row) / 127``.

    ``activations=True`` is LLM.int8() (Dettmers et al. 2022): the same stored bytes, but products use int8
    activations outside of the outlier columns.
    """

    activations: bool = False
    bits = 8
    block = None
    value_range = (-127.0, 127.0)

    @property
    def about(self) -> str:
        plain = "symmetric, one fp32 scale per row"
        return f"{plain}; activations are quantized too (LLM.int8())" if self.activations else plain

    def encode(self, weight_OI: Tensor) -> Tensors:
        weight_OI = weight_OI.detach().float()
        scale_O = weight_OI.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        codes_OI = (weight_OI / scale_O[:, None]).round().clamp(-127, 127).to(torch.int8)
        return {"codes": codes_OI, "scale": scale_O}

    def decode(
        self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, scratch: kernels.Scratch = None
    ) -> Tensor:
        made = kernels.int8_rows(tensors["codes"], tensors["scale"], dtype, scratch)
        if made is not None:
            return made
        # In fp32: a scale rounded to 16 bits would shift its whole row, and the product would round again.
        return (tensors["codes"].float() * tensors["scale"][:, None]).to(dtype)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        return take_rows(tensors, ids_N, rows)

    def nbytes(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] + 4 * shape[0]

    def __str__(self) -> str:
        return "llm-int8" if self.activations else "int8"


@dataclass(frozen=True)
class Affine:
    """Affine integers: ``w ≈ code · scale + minimum`` with bf16 scale and minimum per group along the row.

    Codes are computed from the *stored* (bf16) scale and minimum, so their rounding costs no accuracy. A row
    whose length is no multiple of the group is padded; the padding is stored and counted.
    """

    bits: int
    block: int

    @property
    def about(self) -> str:
        return f"affine, a bf16 scale and minimum per group of {self.block} along the row"

    @property
    def value_range(self) -> tuple[float, float]:
        return 0.0, float(2**self.bits - 1)

    def encode(self, weight_OI: Tensor) -> Tensors:
        groups_GB = blocks(weight_OI, self.block)
        low_G, high_G = groups_GB.amin(1), groups_GB.amax(1)
        top = 2**self.bits - 1
        minimum_G = low_G.to(torch.bfloat16)
        span_G = (high_G - minimum_G.float()).clamp_min(torch.finfo(torch.float32).tiny)
        scale_G = (span_G / top).to(torch.bfloat16).clamp_min(torch.finfo(torch.bfloat16).tiny)
        codes_GB = ((groups_GB - minimum_G.float()[:, None]) / scale_G.float()[:, None]).round().clamp(0, top)
        return {
            "codes": pack_bits(codes_GB.to(torch.uint8).flatten(), self.bits),
            "scale": scale_G,
            "minimum": minimum_G,
        }

    def decode(
        self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, scratch: kernels.Scratch = None
    ) -> Tensor:
        made = kernels.affine(
            tensors["codes"],
            (tensors["scale"], tensors["minimum"]),
            self.bits,
            self.block,
            shape,
            dtype,
            scratch,
        )
        if made is not None:
            return made
        count = tensors["scale"].numel() * self.block
        codes_GB = unpack_bits(tensors["codes"], self.bits, count).view(-1, self.block)
        # In fp32: a bf16 product and a bf16 sum would round twice.
        values_GB = torch.addcmul(
            tensors["minimum"].float()[:, None], codes_GB.float(), tensors["scale"].float()[:, None]
        )
        return unblock(values_GB, shape).to(dtype)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        return take_rows(tensors, ids_N, rows)

    def nbytes(self, shape: tuple[int, int]) -> int:
        groups = block_count(shape, self.block)
        return packed_bytes(groups * self.block, self.bits) + 4 * groups

    def __str__(self) -> str:
        return f"int{self.bits}-g{self.block}"
