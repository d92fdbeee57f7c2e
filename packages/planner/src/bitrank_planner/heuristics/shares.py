"""Convert proportional shares to integer ranks at the trainable numbers of a uniform plan.

One rank of a matrix of shape (out, in) takes out + in trainable numbers. Ranks are proportional to the rule's
weights, between 1 and min(out, in). Fractions are truncated. The freed numbers then add one rank each to the
largest fractions (largest-remainder method; the earlier matrix on ties), skipping steps that no longer fit.
The total is within one matrix's step of the uniform plan's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bitrank_planner.errors import PlanError
from bitrank_planner.problem import Item

_HALVINGS = 200  # bisection steps for the common factor: the remaining interval is much smaller than one rank


def total(matrices: Sequence[Item], mean: float) -> int:
    """Trainable numbers of a plan with rank ``mean`` on every matrix, rounded down.

    Raises :class:`PlanError` for an empty list and for a mean below 1 or not finite.
    """
    if not matrices:
        raise PlanError("there is nothing to give ranks to: expected at least one matrix, got none")
    if not (math.isfinite(mean) and mean >= 1):
        raise PlanError(f"a mean rank of {mean} is no budget; expected 1 or more")
    return math.floor(mean * sum(map(step_of, matrices)) + 1e-6)


def step_of(matrix: Item) -> int:
    """Trainable numbers of one rank of ``matrix``: out + in."""
    return sum(matrix.shape)


def share_out(matrices: Sequence[Item], weights: Sequence[float], numbers: int) -> dict[str, int]:
    """Return ranks in proportion to ``weights`` that take at most ``numbers`` trainable numbers.

    ``weights`` has one value per matrix. Raises :class:`PlanError` for weights that are negative, not finite
    or all zero, and if no ranks within the bounds take ``numbers``.
    """
    weight_M = np.array(weights, float)
    if not np.isfinite(weight_M).all() or (weight_M < 0).any() or not weight_M.any():
        raise PlanError(
            "ranks are shared out by finite weights that are not negative and not all zero; got "
            f"{list(weights)[:6]}"
        )
    step_M, most_M = (
        np.array([step_of(m) for m in matrices]),
        np.array([min(m.shape) for m in matrices], float),
    )
    ideal_M = _ideal(weight_M, step_M, most_M, numbers)
    rank_M = np.floor(ideal_M + 1e-9).astype(int)
    left = numbers - int(rank_M @ step_M)
    for i in np.argsort(-(ideal_M - rank_M), kind="stable"):
        if rank_M[i] < ideal_M[i] - 1e-9 and step_M[i] <= left:
            rank_M[i] += 1
            left -= int(step_M[i])
    return {matrix.name: int(rank) for matrix, rank in zip(matrices, rank_M, strict=True)}


def measured(matrices: Sequence[Item], values: Mapping[str, float], what: str) -> list[float]:
    """Return the value of each matrix in order.

    Raises :class:`PlanError` for a matrix without one; ``what`` names the measurement in the message.
    """
    missing = [matrix.name for matrix in matrices if matrix.name not in values]
    if missing:
        raise PlanError(
            f"no {what} for {len(missing)} of {len(matrices)} matrices, {missing[0]} first; measure every "
            "matrix"
        )
    return [float(values[matrix.name]) for matrix in matrices]


def _ideal(weight_M: np.ndarray, step_M: np.ndarray, most_M: np.ndarray, numbers: int) -> np.ndarray:
    """Fractional ranks clip(c · weight, 1, most), (M,), that take ``numbers`` trainable numbers.

    The total grows with c, so bisection finds c.
    """
    reached = float(np.where(weight_M > 0, most_M, 1) @ step_M)
    if not step_M.sum() <= numbers <= reached:
        raise PlanError(
            f"this rule's ranks take {step_M.sum():,} to {reached:,.0f} trainable numbers here, not "
            f"{numbers:,}; change the mean rank"
        )
    low, high = 0.0, float((most_M / np.where(weight_M > 0, weight_M, np.inf)).max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if np.clip(middle * weight_M, 1, most_M) @ step_M < numbers:
            low = middle
        else:
            high = middle
    return np.clip(high * weight_M, 1, most_M)
