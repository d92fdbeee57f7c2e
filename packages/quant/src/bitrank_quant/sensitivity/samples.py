"""The inputs and output gradients of a matrix at a sample of positions, and the output-error score of a
change Δ = Ŵ − W:

    ½ (1/U) Σ_n Σ_o (g_no Δy_no)²        Δy_n = Δ x_n,  g_n = ∂Σloss/∂y_n

over N positions that contribute U losses. It is the second-order added loss in nats if every entry of the
Fisher information but those on its diagonal, output by output and position by position, is taken as zero:
the score of NVIDIA ModelOpt's ``auto_quantize`` in nats. Unlike the product of separate moments
(``fisher`` in :mod:`~bitrank_quant.sensitivity.format_errors`) it keeps the correlation between gradients,
inputs and errors at each position. For an embedding Δy_n is the row of Δ that position n looks up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitrank_quant.off_mps import off_mps
from bitrank_quant.quantizers import InputMoments

TOKENS = 4096  # positions of a layer that are kept, at most, spread over the batches
NUMBERS = 2**25  # inputs and gradients kept of one layer outside the blocks, such as a head over a vocabulary
_PART = 512  # positions multiplied at once


def spread(positions: int, limit: int) -> slice | Tensor:
    """An index of ``limit`` positions, evenly spread over all; of all of them if they are not more."""
    if positions <= limit:
        return slice(None)
    return torch.arange(limit) * positions // limit


class Components(NamedTuple):
    """Principal components of inputs: their directions (K, I), of length 1, and their shares (K,) in the
    variance, largest first."""

    directions_KI: Tensor
    shares_K: Tensor


class InputSums:
    """Second moments of the inputs x of one layer, or of several layers with the same input (qkv)."""

    def __init__(self) -> None:
        self._sum_II: Any = 0.0
        self._sum_I: Any = 0.0
        self._positions = 0

    def add(self, x_NI: Tensor) -> None:
        x_NI = x_NI.float()
        self._sum_II = self._sum_II + x_NI.T @ x_NI
        self._sum_I = self._sum_I + x_NI.sum(0)
        self._positions += len(x_NI)

    @cached_property
    def mean_II(self) -> Tensor:
        """R = (1/N) Σ x xᵀ, fp32. Nothing may be added afterwards."""
        mean_II: Tensor = self._sum_II / self._positions
        return mean_II

    @cached_property
    def values_I(self) -> Tensor:
        """Eigenvalues of R, largest first; fp32 is enough for shares of their sum."""
        return torch.linalg.eigvalsh(off_mps(self.mean_II)).flip(0).clamp_min(0).cpu()

    @cached_property
    def components(self) -> Components:
        """The principal components of x, of its covariance (1/N) Σ x xᵀ − μ μᵀ, in fp64.

        On the CPU for inputs on MPS.
        """
        mean_I = off_mps(self._sum_I / self._positions).double()
        covariance_II = off_mps(self.mean_II).double() - torch.outer(mean_I, mean_I)
        values_I, vectors_II = torch.linalg.eigh(covariance_II)
        values_I = values_I.flip(0).clamp_min(0)
        shares_I = values_I / values_I.sum().clamp_min(torch.finfo(values_I.dtype).tiny)
        return Components(vectors_II.flip(1).T.float(), shares_I.float())

    @cached_property
    def root_II(self) -> Tensor:
        """The symmetric square root of R, also of a singular one."""
        values_I, vectors_II = torch.linalg.eigh(off_mps(self.mean_II))
        return ((vectors_II * values_I.clamp_min(0).sqrt()) @ vectors_II.T).to(self.mean_II.device)


@dataclass(frozen=True)
class LayerSample:
    """A linear layer at N sampled positions, in the dtype of the pass.

    ``units`` is the number of losses U that these positions stand for; ``inputs`` are those of all positions,
    and so is ``gradient_OI``, the gradient of the mean loss (nats).
    """

    x_NI: Tensor
    grad_NO: Tensor
    units: float
    inputs: InputSums
    gradient_OI: Tensor

    @cached_property
    def quantizer_inputs(self) -> InputMoments:
        """The second moments of the inputs for a quantizer, checked once for all formats."""
        return InputMoments(self.inputs.mean_II)

    def output_error(self, delta_OI: Tensor) -> float:
        """The score of ``delta_OI`` in nats."""
        delta_IO, total = delta_OI.to(self.x_NI.dtype).T, 0.0
        for x_PI, grad_PO in zip(self.x_NI.split(_PART), self.grad_NO.split(_PART), strict=True):
            moved_PO = (x_PI @ delta_IO).float().mul_(grad_PO)
            total += float(torch.linalg.vector_norm(moved_PO)) ** 2
        return 0.5 * total / self.units


@dataclass(frozen=True)
class LookupSample:
    """An embedding at N sampled look-ups: the ids, and the gradients of the rows that were looked up."""

    ids_N: Tensor
    grad_ND: Tensor
    units: float

    def output_error(self, delta_ND: Tensor) -> float:
        """The score of a change whose rows at ``ids_N`` are ``delta_ND``, in nats."""
        return 0.5 * float((delta_ND.float() * self.grad_ND.float()).square().sum()) / self.units


@dataclass
class LinearSums:
    """Running sums of one linear matrix over the batches, and a sample of ``limit`` positions a batch."""

    limit: int
    inputs: InputSums = field(default_factory=InputSums)
    row_O: Any = 0.0
    gradient_OI: Any = 0.0
    positions: int = 0
    _kept_x: list[Tensor] = field(default_factory=list)
    _kept_grad: list[Tensor] = field(default_factory=list)

    def add(self, x_NI: Tensor, grad_NO: Tensor) -> None:
        self.positions += len(x_NI)
        kept = spread(len(x_NI), self.limit)
        self._kept_x.append(x_NI[kept])
        self._kept_grad.append(grad_NO[kept])
        x_NI, grad_NO = x_NI.float(), grad_NO.float()
        self.row_O = self.row_O + grad_NO.square().sum(0)
        self.gradient_OI = self.gradient_OI + grad_NO.T @ x_NI

    def sample(self, units: int) -> LayerSample:
        """The sampled positions, of a pass over ``units`` losses."""
        x_NI, grad_NO = torch.cat(self._kept_x), torch.cat(self._kept_grad)
        share = units * len(x_NI) / self.positions
        return LayerSample(x_NI, grad_NO, share, self.inputs, self.gradient_OI / units)


def positions_a_batch(batches: int, width: int | None = None) -> int:
    """Positions of each of ``batches`` that are sampled; fewer for layers of a large ``width`` (in + out)."""
    tokens = TOKENS if width is None else min(TOKENS, NUMBERS // width)
    return max(1, tokens // batches)
