"""Linear relaxation under one limit, solved by sorting instead of linear programming.

Only the options on the lower convex hull of (amount, cost) of an item can be in a solution. Starting from the
smallest options, the algorithm takes steps along the hulls, the step that saves most cost per unit first,
until the limit is reached (Sinha and Zoltners 1979). The saving per unit of the first step that does not fit
is the dual price of the limit.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def hull_price(
    cost_X: np.ndarray, item_X: np.ndarray, amount_X: np.ndarray, limit: int
) -> tuple[float, np.ndarray]:
    """Return the price per unit of ``limit`` and the option of each item (N indices into X).

    The options are those after all steps before the first one that does not fit. The input lists options item
    by item, with increasing amounts and decreasing costs; the first option of each item has amount 0.
    ``limit`` is not negative.
    """
    bounds = np.searchsorted(item_X, np.arange(int(item_X[-1]) + 2))
    hulls = [_hull(cost_X, amount_X, int(start), int(stop)) for start, stop in pairwise(bounds)]
    low = np.array([option for hull in hulls for option in hull[:-1]], dtype=int)
    high = np.array([option for hull in hulls for option in hull[1:]], dtype=int)
    chosen_N = bounds[:-1].copy()
    if not len(low):
        return 0.0, chosen_N
    saved_S = (cost_X[low] - cost_X[high]) / (amount_X[high] - amount_X[low])
    order = np.argsort(-saved_S, kind="stable")
    taken_S = np.cumsum((amount_X[high] - amount_X[low])[order])
    fitting = int(np.searchsorted(taken_S, limit, side="right"))
    for step in order[:fitting]:  # ``order`` keeps the steps of one item in hull order
        chosen_N[item_X[high[step]]] = high[step]
    return (float(saved_S[order[fitting]]) if fitting < len(order) else 0.0), chosen_N


def _hull(cost_X: np.ndarray, amount_X: np.ndarray, start: int, stop: int) -> list[int]:
    """Options from ``start`` to ``stop`` on the lower convex hull, by Andrew's monotone chain."""
    costs, amounts = cost_X[start:stop].tolist(), amount_X[start:stop].tolist()
    hull: list[int] = []
    for new in range(stop - start):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (costs[a] - costs[b]) * (amounts[new] - amounts[b]) > (costs[b] - costs[new]) * (
                amounts[b] - amounts[a]
            ):
                break
            hull.pop()
        hull.append(new)
    return [start + option for option in hull]
