"""The interface of number formats, and how matrix rows are split into blocks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bitrank_quant import kernels
from bitrank_quant.errors import QuantError
from bitrank_quant.packing import end_on_bytes

Tensors = dict[str, Tensor]


class Format(Protocol):
    """The interface of every format. ``weight_OI`` is (out, in); blocks never cross a row."""

    @property
    def about(self) -> str:
        """The stored data in half a sentence, for lists and help texts."""

    @property
    def bits(self) -> int:
        """Bits per code, without scales."""

    @property
    def block(self) -> int | None:
        """Number of weights along a row that share one scale; None: the whole row, or no scale at all."""

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest code value, before scaling."""

    def encode(self, weight_OI: Tensor) -> Tensors: ...

    def decode(
        self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype, scratch: kernels.Scratch = None
    ) -> Tensor:
        """The matrix in ``dtype``; compiled kernels write it into the buffer of ``scratch``."""

    def rows(self, tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
        """The encoded tensors of the rows ``ids_N`` of a matrix with ``rows`` rows.

        A tensor of ids is an embedding look-up, a slice a range of neighbouring rows.
        """

    def nbytes(self, shape: tuple[int, int]) -> int: ...


def take_rows(tensors: Tensors, ids_N: Tensor | slice, rows: int) -> Tensors:
    """Select rows of tensors with equally many elements per row; 2-D tensors stay 2-D, others are flat.

    Packed codes have equally many bytes per row only if their rows pass :func:`check_rows`.
    """
    taken = {}
    for name, tensor in tensors.items():
        per_row = tensor.reshape(rows, -1)[ids_N]
        taken[name] = per_row if tensor.dim() == 2 else per_row.flatten()
    return taken


def check_rows(codes: int, bits: int) -> None:
    """Raise :class:`QuantError` if rows of ``codes`` packed codes of ``bits`` bits end within a byte.

    The total alone does not show this: two rows of three 2-bit codes fill two bytes, and share the first.
    """
    if not end_on_bytes(codes, bits):
        raise QuantError(
            f"rows of this format do not end on a byte: a row has {codes} codes of {bits} bits; "
            "use a group of 8·k"
        )


def row_codes(fmt: Format, columns: int) -> int:
    """Number of codes of a row of ``columns`` weights in ``fmt``, with its padding to whole blocks."""
    return columns if fmt.block is None else -(-columns // fmt.block) * fmt.block


def block_count(shape: tuple[int, int], block: int) -> int:
    """Number of blocks of a matrix whose rows are padded to whole blocks."""
    return shape[0] * -(-shape[1] // block)


def blocks(weight_OI: Tensor, block: int) -> Tensor:
    """(out, in) → (number of blocks, block) in fp32, each row padded with its own last value."""
    weight_OI = weight_OI.detach().float()
    if missing := -weight_OI.shape[1] % block:
        weight_OI = torch.cat([weight_OI, weight_OI[:, -1:].expand(-1, missing)], dim=1)
    return weight_OI.reshape(-1, block)


def unblock(values_NB: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of :func:`blocks`: the (out, in) matrix without padding."""
    return values_NB.reshape(shape[0], -1)[:, : shape[1]]
