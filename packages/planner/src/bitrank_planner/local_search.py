"""Local search: turn a rounded relaxation into a feasible plan by exchanging two or four options at a time.

Hundreds of matrices have millions of pairs of moves and billions of pairs of pairs. Some of these use almost
every remaining byte of the budget, so the result is within a millionth of the bound, where branching would
take minutes. Pairs of pairs are searched as in the subset-sum algorithm of Horowitz and Sahni (1974): sort
the pairs by bytes, then look up the cheapest partner that fits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_MOVES = 1500  # options tried in pairs: those of least reduced cost
_FOUR = 1200  # options tried in fours, under one limit
_PASSES = 100
_TRIED = 2000  # fours inspected for one whose moves are of different items
# Gains below this share of the summed costs are rounding errors. Without the threshold, exchanges between
# equal items would repeat in a cycle.
_ROUNDING = 1e-14


def exchange(
    start_N: np.ndarray,
    bound: float,
    gap: float,
    item_X: np.ndarray,
    cost_X: np.ndarray,
    reduced_X: np.ndarray,
    rows_LX: np.ndarray,
    limits_L: np.ndarray,
    fours: bool,
    left: Callable[[], float],
) -> np.ndarray | None:
    """Improve ``start_N`` by exchanges and return one option per item (N indices into X) within the limits.

    ``start_N`` may exceed the limits. ``left()`` returns the remaining seconds and is called before each
    exchange. The search stops if no time remains, if the cost is within ``gap`` (relative) of ``bound``, or
    if no pair lowers the cost and, with ``fours``, no two pairs together do. Returns None if no exchange
    brings ``start_N`` within the limits.
    """
    chosen_N = start_N.copy()
    count = len(start_N) + _MOVES // 2  # includes the chosen options, whose reduced cost is zero
    tried = np.sort(np.argsort(reduced_X, kind="stable")[:count])
    for _ in range(_PASSES):
        if left() <= 0.0:
            break
        slack_L = limits_L - rows_LX[:, chosen_N].sum(axis=1)
        fits = bool((slack_L >= 0).all())
        if fits and cost_X[chosen_N].sum() - bound <= gap * abs(bound):
            return chosen_N
        gain = -_ROUNDING * float(np.abs(cost_X[chosen_N]).sum())
        old = chosen_N[item_X[tried]]
        pair = _best_pair(
            item_X[tried], cost_X[tried] - cost_X[old], rows_LX[:, tried] - rows_LX[:, old], slack_L
        )
        if fours and fits and (pair is None or pair[1] >= gain):
            other = np.ones(len(reduced_X), dtype=bool)
            other[chosen_N] = False
            few = np.flatnonzero(other)[np.argsort(reduced_X[other], kind="stable")[:_FOUR]]
            pair, tried_now = _best_four(few, chosen_N, item_X, cost_X, rows_LX, slack_L), few
        else:
            tried_now = tried
        if pair is None or (fits and pair[1] >= gain):
            return chosen_N if fits else None
        for option in tried_now[pair[0]]:
            chosen_N[item_X[option]] = option
    return chosen_N if _fits(chosen_N, rows_LX, limits_L) else None


def _fits(chosen_N: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray) -> bool:
    return bool((rows_LX[:, chosen_N].sum(axis=1) <= limits_L).all())


def _best_four(
    few: np.ndarray,
    chosen_N: np.ndarray,
    item_X: np.ndarray,
    cost_X: np.ndarray,
    rows_LX: np.ndarray,
    slack_L: np.ndarray,
) -> tuple[list[int], float] | None:
    """Up to four moves to options in ``few``, of different items, that fit and lower the cost most.

    Returns None with several limits or if no such moves exist.
    """
    if len(slack_L) != 1:
        return None
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
    item_M: np.ndarray, change_M: np.ndarray, taken_LM: np.ndarray, slack_L: np.ndarray
) -> tuple[list[int], float] | None:
    """The two moves of different items that fit and change the cost least, and that change in cost.

    Returns None if no pair fits into ``slack_L``. The chosen options are among the moves and change nothing,
    so a pair can also be a single move.
    """
    change_MM = change_M[:, None] + change_M
    fits_MM = item_M[:, None] != item_M
    for taken_M, slack in zip(taken_LM, slack_L, strict=True):
        fits_MM &= taken_M[:, None] + taken_M <= slack
    change_MM[~fits_MM] = np.inf
    best = divmod(int(change_MM.argmin()), len(item_M))
    return (list(best), float(change_MM[best])) if np.isfinite(change_MM[best]) else None
