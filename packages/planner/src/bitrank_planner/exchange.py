"""From a rounded relaxation to a plan that fits: two options at a time are exchanged for others, the best pair first.

With hundreds of matrices there are millions of pairs, and some of them use up what a budget leaves over almost to the byte, so this
comes within a millionth of the bound where branching would search for minutes.
"""

from __future__ import annotations

import numpy as np

_MOVES = 1500  # options that are tried in pairs: those of least reduced cost
_PASSES = 100


def exchange(
    start_N: np.ndarray,
    bound: float,
    gap: float,
    item_X: np.ndarray,
    cost_X: np.ndarray,
    reduced_X: np.ndarray,
    rows_LX: np.ndarray,
    limits_L: np.ndarray,
) -> np.ndarray | None:
    """One option per item (N indices into X) within the limits, by exchanges from ``start_N``, which may be above them.

    Stops at a cost within ``gap``, relative, of ``bound``, or when no pair lowers the cost any more. None when no pair brings
    ``start_N`` within the limits.
    """
    chosen_N = start_N.copy()
    tried = np.sort(np.argsort(reduced_X, kind="stable")[:_MOVES])
    for _ in range(_PASSES):
        slack_L = limits_L - rows_LX[:, chosen_N].sum(axis=1)
        fits = bool((slack_L >= 0).all())
        if fits and cost_X[chosen_N].sum() - bound <= gap * abs(bound):
            return chosen_N
        old = chosen_N[item_X[tried]]
        pair = _best_pair(item_X[tried], cost_X[tried] - cost_X[old], rows_LX[:, tried] - rows_LX[:, old], slack_L)
        if pair is None or (fits and pair[1] >= 0):
            return chosen_N if fits else None
        for option in tried[pair[0]]:
            chosen_N[item_X[option]] = option
    return chosen_N if fits else None


def _best_pair(item_M: np.ndarray, change_M: np.ndarray, taken_LM: np.ndarray, slack_L: np.ndarray) -> tuple[list[int], float] | None:
    """The two moves of different items that fit into ``slack_L`` and change the cost least, and that change; None when none fit.

    The chosen options are among the moves and change nothing, so a pair may also be a single move.
    """
    change_MM = change_M[:, None] + change_M
    fits_MM = item_M[:, None] != item_M
    for taken_M, slack in zip(taken_LM, slack_L, strict=True):
        fits_MM &= taken_M[:, None] + taken_M <= slack
    change_MM[~fits_MM] = np.inf
    best = divmod(int(change_MM.argmin()), len(item_M))
    return (list(best), float(change_MM[best])) if np.isfinite(change_MM[best]) else None
