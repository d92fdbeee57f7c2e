"""Adapter initialization from the quantization residual: LoftQ, Fisher-weighted LQ-LoRA, and QERA.

A matrix W becomes Q + s · B A with Q stored in few bits and s · B A the best low-rank approximation of W − Q,
where s is the scale of rank r (see :mod:`~bitrank_adapters.scales`). With AdaLoRA P, Λ and Q
replace B and A; P and Q are orthonormal, as its regularizer requires. Matrices are processed one at a time:
:meth:`ResidualStart.split` runs while the 16-bit weight of a matrix is in memory, before it is stored;
:meth:`ResidualStart.write` copies the factors (as large as the adapters) into the adapters after these have
been created.

Rounds alternate (LoftQ, algorithm 1): Q ← q(W − L), L ← best rank-r approximation of W − Q. They end when the
error rises, as in LQ-LoRA, and the best round is used, so the error never exceeds the error without an
adapter. Directions with a zero residual keep the default initialization, and so do all directions of a 16-bit
matrix.

A has the row norm κ of LoRA's default start and B has the rest: A = κ Vᵀ, B = U Σ/(s κ). With A fixed, one
step of Adam on B changes the product as much as from the default start, whatever the size of the residual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.input_weighted import InputNorm
from bitrank_adapters.lowrank import Factors, RowColumn, best_low_rank, weighted_norm
from bitrank_adapters.plans import RankPlan, positive_ranks
from bitrank_adapters.rank_hooks import adapted
from bitrank_adapters.scales import effective_scale
from bitrank_adapters.weight_decomposed import reset_magnitude

_ADAPTER = "default"
# PEFT starts A as kaiming_uniform_(a=√5): U(−1/√n, 1/√n) over n inputs, so E‖row‖² = n · 1/(3n) for every n.
KAIMING_ROW_NORM = 3**-0.5
_NOTHING = 1e-6  # a singular value below this share of the largest is rounding error


class AdapterStart(Protocol):
    """Initial values of the adapters of a model, for which a matrix may be stored without a part of it."""

    def split(self, name: str, weight_OI: Tensor, stored: Callable[[Tensor], Tensor]) -> Tensor:
        """Weight to store for matrix ``name`` instead of ``weight_OI``."""

    def write(self, model: PeftModel) -> None:
        """Copy the initial values into the adapters of ``model``."""


class ErrorNorm(Protocol):
    """A norm of errors of a matrix, and the best low-rank approximation in it."""

    def of(self, matrix_OI: Tensor) -> float:
        """The norm of ``matrix_OI``."""

    def best(self, residual_OI: Tensor, rank: int) -> Factors:
        """Nearest matrix of ``rank`` to ``residual_OI``."""


@dataclass(frozen=True)
class _EntryNorm:
    """‖D₁ M D₂‖_F with row and column weights, or ‖M‖_F without."""

    weights: RowColumn | None

    def of(self, matrix_OI: Tensor) -> float:
        return weighted_norm(matrix_OI, self.weights)

    def best(self, residual_OI: Tensor, rank: int) -> Factors:
        return best_low_rank(residual_OI, rank, self.weights)


class ResidualStart:
    """Residual initialization for the matrices of ``ranks``; one without a rank above 0 stays as it is.

    ``rounds`` is the maximum number of alternating rounds; ``weights`` {name: (row_O, column_I)} selects
    LQ-LoRA, ``inputs``, which returns the second moments (in, in) of a matrix's inputs by its name, QERA.
    ``errors`` maps each matrix to the (weighted) norm of W − Q, before and after adding the adapter.
    Raises :class:`AdapterError` if ``rounds`` is below 1, or weights are missing, of the wrong shape,
    negative or not finite, or if both ``weights`` and ``inputs`` are given.
    """

    def __init__(
        self,
        ranks: RankPlan,
        *,
        rounds: int = 1,
        weights: Mapping[str, RowColumn] | None = None,
        inputs: Callable[[str], Tensor] | None = None,
    ) -> None:
        if rounds < 1:
            raise AdapterError(f"the alternating rounds of an initialisation must be 1 or more, got {rounds}")
        ranks = positive_ranks(ranks)
        missing = [] if weights is None else sorted(set(ranks) - set(weights))
        if missing:
            raise AdapterError(
                f"no row and column weights were given for {missing[0]!r}; a weighted start needs them for "
                "every matrix"
            )
        if weights is not None and inputs is not None:
            raise AdapterError("a start is weighted by rows and columns or by inputs, not by both; give one")
        self._ranks, self._rounds, self._weights, self._inputs = ranks, rounds, weights, inputs
        self._factors: dict[str, Factors] = {}
        self.errors: dict[str, tuple[float, float]] = {}

    def split(self, name: str, weight_OI: Tensor, stored: Callable[[Tensor], Tensor]) -> Tensor:
        """Weight to store for matrix ``name`` instead of ``weight_OI``.

        ``stored`` maps a weight to its value after quantization.
        """
        if name not in self._ranks:
            return weight_OI
        whole_OI, norm, held_OI = weight_OI.detach().float(), self._norm_of(name, weight_OI), weight_OI
        best_OI, best, least, before = held_OI, None, float("inf"), 0.0
        for turn in range(self._rounds):
            residual_OI = whole_OI - stored(held_OI).to(whole_OI)
            before = norm.of(residual_OI) if turn == 0 else before
            factors = norm.best(residual_OI, self._ranks[name])
            error = norm.of(residual_OI - factors.product())
            if best is not None and error >= least:
                break
            best_OI, best, least = held_OI, factors, error
            held_OI = (whole_OI - factors.product()).to(weight_OI.dtype)
        assert best is not None
        self._factors[name], self.errors[name] = best, (before, least)
        return best_OI

    def write(self, model: PeftModel) -> None:
        """Copy the factors into the adapters of ``model``.

        Raises :class:`AdapterError` if a matrix has no adapter.
        """
        layers = dict(adapted(model))
        for name in list(self._factors):
            with torch.no_grad():
                _write(adapter_of(layers, name), self._factors.pop(name))

    def _norm_of(self, name: str, weight_OI: Tensor) -> ErrorNorm:
        if self._inputs is None:
            return _EntryNorm(self._weights_of(name, weight_OI))
        norm = InputNorm(self._inputs(name))
        if len(norm.second_II) != weight_OI.shape[1]:
            raise AdapterError(
                f"the second moments of {name!r} are for {len(norm.second_II)} inputs, the matrix has "
                f"{weight_OI.shape[1]}"
            )
        return norm

    def _weights_of(self, name: str, weight_OI: Tensor) -> RowColumn | None:
        if self._weights is None:
            return None
        row_O, column_I = (torch.as_tensor(part) for part in self._weights[name])
        if (len(row_O), len(column_I)) != tuple(weight_OI.shape):
            raise AdapterError(
                f"the weights of {name!r} are for shape {(len(row_O), len(column_I))}, the matrix is "
                f"{tuple(weight_OI.shape)}"
            )
        if not all(torch.isfinite(part).all() and (part >= 0).all() for part in (row_O, column_I)):
            raise AdapterError(
                f"the row and column weights of {name!r} must be finite and not negative; measure them again"
            )
        return row_O, column_I


def adapter_of(layers: Mapping[str, Any], name: str) -> Any:
    """The adapter layer of matrix ``name``, which was stored without the part that its adapter starts as.

    Raises :class:`AdapterError` if there is none.
    """
    if name not in layers:
        raise AdapterError(
            f"{name!r} was stored without what its adapter repairs, but the model has no adapter there"
        )
    return layers[name]


def _write(layer: Any, factors: Factors) -> None:
    """Overwrite the default initialization in every direction with a nonzero residual."""
    values_R = factors.values_R
    count = int((values_R > _NOTHING * values_R[0]).sum())
    values_R = values_R[:count] / effective_scale(layer)
    left_OR, right_RI = factors.left_OR[:, :count], factors.right_RI[:count]
    down, up = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
    if hasattr(layer, "lora_E"):
        down[:count].copy_(right_RI)
        up[:, :count].copy_(left_OR)
        layer.lora_E[_ADAPTER][:count].copy_(values_R[:, None])
    else:
        down.weight[:count].copy_(KAIMING_ROW_NORM * right_RI)
        up.weight[:, :count].copy_(left_OR * (values_R / KAIMING_ROW_NORM))
    reset_magnitude(layer)
