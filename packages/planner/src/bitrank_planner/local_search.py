"""Local search: turn a rounded relaxation into a feasible plan by exchanging two or four options at a time.

Hundreds of matrices have millions of pairs of moves and billions of pairs of pairs. Some of these use almost
every remaining byte of the budget, so the result is within a millionth of the bound, where branching would
take minutes. Pairs of pairs are searched as in the subset-sum algorithm of Horowitz and Sahni (1974): sort
the pairs by bytes, then look up the cheapest partner that fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_MOVES = 1500  # options tried in pairs: those of least reduced cost
_FOUR = 1200  # options tried in 4-item exchanges, under one limit
_PASSES = 100  # most exchanges of one search
_TRIED = 2000  # 4-item exchanges tried before giving up on one with four distinct items
# Gains below this share of the summed costs are rounding errors. Without the threshold, exchanges between
# equal items would repeat in a cycle.
_ROUNDING = 1e-14


@dataclass(frozen=True)
class Relaxed:
    """Options of an integer program, and the dual solution of its linear relaxation.

    X options of N items under L limits: option x belongs to ``item_X[x]``, costs ``cost_X[x]`` and takes
    ``rows_LX[:, x]`` of ``limits_L``. ``bound`` is the optimal cost of the relaxation, ``reduced_X`` are the
    reduced costs at its optimum.
    """

    item_X: np.ndarray
    cost_X: np.ndarray
    reduced_X: np.ndarray
    rows_LX: np.ndarray
    limits_L: np.ndarray
    bound: float

    def slack_L(self, chosen_N: np.ndarray) -> np.ndarray:
        """Remainder of each limit under ``chosen_N``; negative where it exceeds one."""
        return self.limits_L - self.rows_LX[:, chosen_N].sum(axis=1)

    def within(self, chosen_N: np.ndarray, gap: float) -> bool:
        """Whether the cost of ``chosen_N`` is within ``gap`` (relative) of the bound."""
        return bool(self.cost_X[chosen_N].sum() - self.bound <= gap * abs(self.bound))


def exchange(
    start_N: np.ndarray, relaxed: Relaxed, gap: float, fours: bool, left: Callable[[], float]
) -> np.ndarray | None:
    """Improve ``start_N`` by exchanges and return one option per item (N indices into X) within the limits.

    ``start_N`` may exceed the limits. ``left()`` returns the remaining seconds and is called before each
    exchange. The search stops if no time remains, if the cost is within ``gap`` (relative) of the bound, or
    if no pair lowers the cost and, with ``fours``, no two pairs together do. Returns None if no exchange
    brings ``start_N`` within the limits.
    """
    chosen_N = start_N.copy()
    count = len(start_N) + _MOVES // 2  # includes the chosen options, whose reduced cost is zero
    tried = np.sort(np.argsort(relaxed.reduced_X, kind="stable")[:count])
    for _ in range(_PASSES):
        if left() <= 0.0:
            break
        slack_L = relaxed.slack_L(chosen_N)
        fits = bool((slack_L >= 0).all())
        if fits and relaxed.within(chosen_N, gap):
            return chosen_N
        gain = -_ROUNDING * float(np.abs(relaxed.cost_X[chosen_N]).sum())
        moves, tried_now = _best_pair(relaxed, tried, chosen_N, slack_L), tried
        if fours and fits and (moves is None or moves[1] >= gain):
            tried_now = _least_reduced(relaxed, chosen_N)
            moves = _best_four(relaxed, tried_now, chosen_N, slack_L)
        if moves is None or (fits and moves[1] >= gain):
            return chosen_N if fits else None
        for option in tried_now[moves[0]]:
            chosen_N[relaxed.item_X[option]] = option
    return chosen_N if bool((relaxed.slack_L(chosen_N) >= 0).all()) else None


def _least_reduced(relaxed: Relaxed, chosen_N: np.ndarray) -> np.ndarray:
    """Options outside ``chosen_N`` with the least reduced cost, at most ``_FOUR`` (indices into X)."""
    other = np.ones(len(relaxed.reduced_X), dtype=bool)
    other[chosen_N] = False
    order = np.argsort(relaxed.reduced_X[other], kind="stable")
    return np.flatnonzero(other)[order[:_FOUR]]


def _best_four(
    relaxed: Relaxed, few: np.ndarray, chosen_N: np.ndarray, slack_L: np.ndarray
) -> tuple[list[int], float] | None:
    """Up to four moves to options in ``few``, of different items, that fit and lower the cost most.

    Returns None with several limits or if no such moves exist.
    """
    if len(slack_L) != 1:
        return None
    item_X, cost_X, rows_LX = relaxed.item_X, relaxed.cost_X, relaxed.rows_LX
    old = chosen_N[item_X[few]]
    item_M, change_M, taken_M = item_X[few], cost_X[few] - cost_X[old], rows_LX[0, few] - rows_LX[0, old]
    one_P, other_P = np.triu_indices(len(few), 1)
    apart = item_M[one_P] != item_M[other_P]
    one_P, other_P = one_P[apart], other_P[apart]
    one_P, other_P = (
        np.concatenate([one_P, np.arange(len(few))]),
        np.concatenate([other_P, np.full(len(few), -1)]),
    )  # single moves, with -1 as the partner
    alone_P = other_P < 0
    change_P = change_M[one_P] + np.where(alone_P, 0.0, change_M[other_P])
    taken_P = taken_M[one_P] + np.where(alone_P, 0, taken_M[other_P])
    order = np.argsort(taken_P, kind="stable")
    least_P = np.minimum.accumulate(change_P[order])
    place_P = np.maximum.accumulate(np.where(change_P[order] == least_P, np.arange(len(order)), 0))
    fitting_P = np.searchsorted(taken_P[order], slack_L[0] - taken_P, side="right") - 1
    total_P = np.where(fitting_P >= 0, change_P + least_P[fitting_P], np.inf)
    for pair in np.argsort(total_P, kind="stable")[:_TRIED]:
        if total_P[pair] >= 0:
            return None
        partner = order[place_P[fitting_P[pair]]]
        moves = [
            int(move) for move in (one_P[pair], other_P[pair], one_P[partner], other_P[partner]) if move >= 0
        ]
        if len({int(item_M[move]) for move in moves}) == len(moves):
            return moves, float(total_P[pair])
    return None


def _best_pair(
    relaxed: Relaxed, tried: np.ndarray, chosen_N: np.ndarray, slack_L: np.ndarray
) -> tuple[list[int], float] | None:
    """The two moves to options in ``tried`` that fit and change the cost least, and that change in cost.

    The moves are of different items. Returns None if no pair fits into ``slack_L``. The chosen options are
    among the moves and change nothing, so a pair can also be a single move.
    """
    item_M = relaxed.item_X[tried]
    old = chosen_N[item_M]
    change_M = relaxed.cost_X[tried] - relaxed.cost_X[old]
    taken_LM = relaxed.rows_LX[:, tried] - relaxed.rows_LX[:, old]
    change_MM = change_M[:, None] + change_M
    fits_MM = item_M[:, None] != item_M
    for taken_M, slack in zip(taken_LM, slack_L, strict=True):
        fits_MM &= taken_M[:, None] + taken_M <= slack
    change_MM[~fits_MM] = np.inf
    best = divmod(int(change_MM.argmin()), len(item_M))
    return (list(best), float(change_MM[best])) if np.isfinite(change_MM[best]) else None
