"""The grid of a group of weights: the values that its codes can take, for given scales.

A quantizer sees every format through these few functions, so that one search and one error feedback serve all
of them. A group is the columns of a row that share scales: ``block`` columns, or the whole row for ``int8``.
Scales are rounded to the type in which the format stores them before codes are chosen.

Shapes: weights and codes (..., B), scales (...), column weights (B,) or with the same groups, (G, B).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bitrank_quant.formats.base import Tensors
from bitrank_quant.kernels.quantize import Points

TINY = torch.finfo(torch.float32).tiny
Scales = tuple[Tensor, ...]  # one tensor per stored scale of a group


class Grid(Protocol):
    """The part of a format that a quantizer needs. Everything is fp32 except codes."""

    @property
    def block(self) -> int | None:
        """Columns of a group; None: the whole row."""

    def ranges(self, weights: Tensor) -> tuple[Tensor, ...]:
        """The ends of each group's range, (...) each, for :meth:`fit`."""

    def fit(self, ranges: tuple[Tensor, ...], shrink: float | Tensor) -> Scales:
        """Scales for ``shrink`` (at most 1) of each group's range; weights outside are clipped. A tensor of
        shrinks is broadcast with the ranges."""

    def refit(self, weights: Tensor, codes: Tensor, column_weights: Tensor, full: Scales) -> Scales:
        """Scales with the least weighted squared error for given codes; those of the ``full`` range for a
        group whose codes leave its scale open."""

    @property
    def points(self) -> Points:
        """The points whose multiples by the first scale, plus the second one if there is one, are the
        values: for compiled passes."""

    def codes(self, found: Tensor) -> Tensor:
        """The codes of points, given as whole numbers or as indices of the book of :attr:`points`, fp32."""

    def quantize(self, weights: Tensor, scales: Scales) -> Tensor:
        """The codes of the nearest values."""

    def nearest(self, weights: Tensor, scales: Scales) -> Tensor:
        """The nearest values: ``decode(quantize(weights, scales), scales)``, bit by bit, without codes."""

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        """The values of codes: Σ_k scales_k · basis_k."""

    def basis(self, codes: Tensor) -> tuple[Tensor, ...]:
        """The factors (..., B) of the scales in the values of codes."""

    def rounded(self, scale: Tensor, number: int) -> Tensor:
        """``scale``, which is number ``number`` of a group's scales, as the format stores it."""

    def store(self, scales_OG: Scales) -> Tensors:
        """The stored tensors of the scales of a whole matrix."""

    def read(self, stored: Tensors, rows: int) -> Scales:
        """The scales (O, G) that decoding uses."""

    def pack(self, codes_OI: Tensor) -> Tensor:
        """The stored tensor of the codes of whole groups."""


def weighted(values: Tensor, column_weights: Tensor) -> Tensor:
    """Σ_b column_weights_b · values_b: (..., B) → (...)."""
    return (values * column_weights).sum(-1)
