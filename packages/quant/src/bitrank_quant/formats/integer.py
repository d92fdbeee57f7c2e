"""Integer formats: symmetric with a scale per row or group, and affine with scale and minimum per group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitrank_quant import kernels
from bitrank_quant.formats.base import Tensors, block_count, blocks, check_rows, take_rows, unblock
from bitrank_quant.formats.codebook import decode_dynamic_8bit, encode_dynamic_8bit
from bitrank_quant.packing import pack_bits, packed_bytes, unpack_bits

_SAME = 1e-5  # relative difference that sums in another order can have in fp32


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

    With ``double_quant`` scales and minima are each stored in dynamic 8-bit, as QLoRA stores block scales
    (section 3), and read back as bf16.
    """

    bits: int
    block: int
    double_quant: bool = False

    @property
    def about(self) -> str:
        stored = "an 8-bit scale and minimum (double quantization)" if self.double_quant else ""
        return f"affine, {stored or 'a bf16 scale and minimum'} per group of {self.block} along the row"

    @property
    def value_range(self) -> tuple[float, float]:
        return 0.0, float(2**self.bits - 1)

    def encode(self, weight_OI: Tensor) -> Tensors:
        return self.encode_parts((weight_OI,))

    def encode_parts(self, parts: tuple[Tensor, ...]) -> Tensors:
        """The tensors of a matrix from consecutive row parts (O, I), one of which at a time is in fp32.

        All but the last part end on a whole byte of codes, as 64 rows do.
        """
        ranges = [torch.aminmax(blocks(part_OI, self.block), dim=1) for part_OI in parts]
        low_G, high_G = (torch.cat(ends) for ends in zip(*ranges, strict=True))
        stored, (scale_G, minimum_G) = self._stored_range(low_G, high_G)
        codes, start = [], 0
        for part_OI in parts:
            groups_GB = blocks(part_OI, self.block)
            here = slice(start, start + len(groups_GB))
            steps_GB = (groups_GB - minimum_G[here, None].float()) / scale_G[here, None].float()
            codes_GB = steps_GB.round().clamp(0, 2**self.bits - 1).to(torch.uint8)
            codes.append(pack_bits(codes_GB.flatten(), self.bits))
            start = here.stop
        return {"codes": torch.cat(codes), **stored}

    def _stored_range(self, low_G: Tensor, high_G: Tensor) -> tuple[Tensors, tuple[Tensor, Tensor]]:
        """The stored tensors of groups with these ends, and the scales and minima that decoding uses."""
        top = 2**self.bits - 1
        if not self.double_quant:
            minimum_G = low_G.to(torch.bfloat16)
            span_G = (high_G - minimum_G.float()).clamp_min(torch.finfo(torch.float32).tiny)
            scale_G = (span_G / top).to(torch.bfloat16).clamp_min(torch.finfo(torch.bfloat16).tiny)
            return {"scale": scale_G, "minimum": minimum_G}, (scale_G, minimum_G)
        minimum_G = read_nested(nest("minimum", low_G), "minimum")
        stored = self.nest_scales((high_G - minimum_G.float()) / top, low_G)
        return stored, self.read_scales(stored)

    def of_codes(self, codes_GB: Tensor, scale_G: Tensor, minimum_G: Tensor) -> Tensors:
        """The stored tensors of given codes (uint8), scales and minima (bf16), all by group.

        For formats without double quantization.
        """
        return {"codes": pack_bits(codes_GB.flatten(), self.bits), "scale": scale_G, "minimum": minimum_G}

    def add_to_groups(self, tensors: Tensors, update_OI: Tensor) -> Tensors | None:
        """The tensors of the matrix plus ``update_OI``, with unchanged codes and scales.

        None if the update is zero or not the same within every group, or minima are in 8 bits. Minima become
        fp32, which is exact and takes 2 more bytes per group than :meth:`nbytes` counts.
        """
        groups_GB = blocks(update_OI, self.block)
        largest = groups_GB.abs().max()
        spread = (groups_GB.amax(dim=1) - groups_GB.amin(dim=1)).max()
        if self.double_quant or self.block == 1 or largest == 0 or spread > _SAME * largest:
            return None
        return {**tensors, "minimum": tensors["minimum"].float() + groups_GB.mean(dim=1)}

    def nest_scales(self, scale_G: Tensor, minimum_G: Tensor) -> Tensors:
        """The stored tensors of scales and minima (fp32) under double quantization."""
        return {**nest("scale", scale_G), **nest("minimum", minimum_G)}

    def read_scales(self, tensors: Tensors, at: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        """Scales and minima in bf16, as decoding uses them, of all groups or of those at ``at``."""
        if "scale_outer" not in tensors:
            return tensors["scale"][at], tensors["minimum"][at]
        # The offset of many scales can round a small one to zero or below.
        scale_G = read_nested(tensors, "scale", at).clamp_min(torch.finfo(torch.bfloat16).tiny)
        return scale_G, read_nested(tensors, "minimum", at)

    def decode(
        self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, scratch: kernels.Scratch = None
    ) -> Tensor:
        scale_G, minimum_G = self.read_scales(tensors)
        made = kernels.affine(
            tensors["codes"],
            (scale_G, minimum_G),
            self.bits,
            self.block,
            shape,
            dtype,
            scratch,
        )
        if made is not None:
            return made
        count = scale_G.numel() * self.block
        codes_GB = unpack_bits(tensors["codes"], self.bits, count).view(-1, self.block)
        # In fp32: a bf16 product and a bf16 sum would round twice.
        values_GB = torch.addcmul(minimum_G.float()[:, None], codes_GB.float(), scale_G.float()[:, None])
        return unblock(values_GB, shape).to(dtype)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        per_row = tensors["scale"].numel() // rows
        check_rows(per_row * self.block, self.bits)
        if not self.double_quant:
            return take_rows(tensors, ids_N, rows)
        # Blocks of nested scales cross rows, so the scales of the selected rows are decoded here.
        at: slice | Tensor
        if isinstance(ids_N, slice):
            start, stop, _ = ids_N.indices(rows)
            at = slice(start * per_row, stop * per_row)
        else:
            at = (ids_N[:, None] % rows * per_row + torch.arange(per_row, device=ids_N.device)).flatten()
        scale_G, minimum_G = self.read_scales(tensors, at)
        codes = take_rows({"codes": tensors["codes"]}, ids_N, rows)
        return {**codes, "scale": scale_G, "minimum": minimum_G}

    def nbytes(self, shape: tuple[int, int]) -> int:
        groups = block_count(shape, self.block)
        nested = 2 * (groups + 4 * -(-groups // 256) + 4)  # 8 bits each, outer scales and offset in fp32
        return packed_bytes(groups * self.block, self.bits) + (nested if self.double_quant else 4 * groups)

    def __str__(self) -> str:
        return f"int{self.bits}-g{self.block}{'-dq' if self.double_quant else ''}"


@dataclass(frozen=True)
class Symmetric:
    """Symmetric integers: ``w ≈ (code - 2^(bits-1)) · scale`` with one bf16 scale per group along the row.

    The integers of ``pack-quantized`` in compressed-tensors without zero points, which vLLM multiplies by. A
    row whose length is no multiple of the group is padded; the padding is stored and counted.
    """

    bits: int
    block: int

    @property
    def about(self) -> str:
        return f"symmetric, a bf16 scale per group of {self.block} along the row"

    @property
    def value_range(self) -> tuple[float, float]:
        return -float(self.zero), float(self.zero - 1)

    @property
    def zero(self) -> int:
        """The code of zero."""
        return 2 ** (self.bits - 1)

    def scale_of(self, low: Tensor, high: Tensor) -> Tensor:
        """The bf16 scale with which no weight between ``low`` and ``high`` is clipped, up to rounding."""
        scale = torch.maximum(high / (self.zero - 1), -low / self.zero)
        return scale.to(torch.bfloat16).clamp_min(torch.finfo(torch.bfloat16).tiny)

    def encode(self, weight_OI: Tensor) -> Tensors:
        groups_GB = blocks(weight_OI, self.block)
        scale_G = self.scale_of(*torch.aminmax(groups_GB, dim=1))
        steps_GB = (groups_GB / scale_G.float()[:, None]).round().clamp(*self.value_range)
        codes_GB = (steps_GB + self.zero).to(torch.uint8)
        return {"codes": pack_bits(codes_GB.flatten(), self.bits), "scale": scale_G}

    def decode(
        self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, scratch: kernels.Scratch = None
    ) -> Tensor:
        # The minimum is a power of two times the scale, so it is exact in bf16.
        affine = {**tensors, "minimum": tensors["scale"] * -self.zero}
        return Affine(self.bits, self.block).decode(affine, shape, dtype, scratch)

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        check_rows(tensors["scale"].numel() // rows * self.block, self.bits)
        return take_rows(tensors, ids_N, rows)

    def nbytes(self, shape: tuple[int, int]) -> int:
        groups = block_count(shape, self.block)
        return packed_bytes(groups * self.block, self.bits) + 2 * groups

    def __str__(self) -> str:
        return f"sym{self.bits}-g{self.block}"


def nest(name: str, values_G: Tensor) -> Tensors:
    """``values_G`` in dynamic 8-bit, as tensors whose names begin with ``name``."""
    parts = encode_dynamic_8bit(values_G)
    return {name: parts["absmax"], f"{name}_outer": parts["outer"], f"{name}_offset": parts["offset"]}


def read_nested(tensors: Tensors, name: str, at: slice | Tensor = slice(None)) -> Tensor:
    """The values of :func:`nest` in bf16: all, or those at ``at``."""
    parts = {"absmax": tensors[name], "outer": tensors[f"{name}_outer"], "offset": tensors[f"{name}_offset"]}
    return decode_dynamic_8bit(parts, at).to(torch.bfloat16)
