"""Whole ranks out of shares: every rule spends what a uniform plan of the same mean rank spends, to within one matrix's step.

A rank step of a matrix of shape (out, in) costs out + in trainable numbers. Ranks are in proportion to the rule's weights, within 1 and
min(out, in); the fractions are cut off, and what that frees goes, one step each, to the largest fractions first (largest remainder;
the earlier matrix of equals), passing over a step that no longer fits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bitrank_planner.errors import PlanError
from bitrank_planner.problem import Item

_HALVINGS = 200  # of the interval that holds the common factor: far below one rank step


def total(matrices: Sequence[Item], mean: float) -> int:
    """Trainable numbers that rank ``mean`` on every matrix takes, rounded down. Raises :class:`PlanError` for a mean below 1."""
    if not matrices:
        raise PlanError("there is nothing to give ranks to: expected at least one matrix, got none")
    if not (math.isfinite(mean) and mean >= 1):
        raise PlanError(f"a mean rank of {mean} is no budget; expected 1 or more")
    return math.floor(mean * sum(map(step_of, matrices)) + 1e-6)


def step_of(matrix: Item) -> int:
    """Trainable numbers that one more rank of ``matrix`` takes."""
    return sum(matrix.shape)


def share_out(matrices: Sequence[Item], weights: Sequence[float], numbers: int) -> dict[str, int]:
    """Ranks in proportion to ``weights`` (not negative, one per matrix) that take ``numbers`` trainable numbers, or a little less.

    Raises :class:`PlanError` for weights that are negative, not finite or all zero, and when no ranks within bounds take ``numbers``.
    """
    weight_M = np.array(weights, float)
    if not np.isfinite(weight_M).all() or (weight_M < 0).any() or not weight_M.any():
        raise PlanError(
            f"ranks are shared out by finite weights that are not negative and not all zero; got {list(weights)[:6]}"
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
    """The measurement of each matrix. Raises :class:`PlanError` for a matrix without one."""
    missing = [matrix.name for matrix in matrices if matrix.name not in values]
    if missing:
        raise PlanError(
            f"no {what} for {len(missing)} of {len(matrices)} matrices, {missing[0]} first; measure every matrix"
        )
    return [float(values[matrix.name]) for matrix in matrices]


def _ideal(weight_M: np.ndarray, step_M: np.ndarray, most_M: np.ndarray, numbers: int) -> np.ndarray:
    """clip(c · weight, 1, most), with the c at which these take ``numbers``; the sum grows with c, so c is found by halving."""
    reached = float(np.where(weight_M > 0, most_M, 1) @ step_M)
    if not step_M.sum() <= numbers <= reached:
        raise PlanError(
            f"this rule's ranks take {step_M.sum():,} to {reached:,.0f} trainable numbers here, not {numbers:,}; change the mean rank"
        )
    low, high = 0.0, float((most_M / np.where(weight_M > 0, weight_M, np.inf)).max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if np.clip(middle * weight_M, 1, most_M) @ step_M < numbers:
            low = middle
        else:
            high = middle
    return np.clip(high * weight_M, 1, most_M)
