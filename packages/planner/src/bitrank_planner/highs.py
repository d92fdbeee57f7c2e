"""The linear relaxation and the integer program of a planning problem, solved by HiGHS through scipy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp
from scipy.sparse import csr_array

from bitrank_planner.errors import PlanError
from bitrank_planner.lp_relaxation import hull_price
from bitrank_planner.quiet_stdout import silenced

_STOPPED, _INFEASIBLE = 1, 2  # values of ``OptimizeResult.status``
_LIMITED = "limit reached"  # scipy has no status code for a node limit, only the message of HiGHS
_LIMIT = 1e4  # scaled value of a limit: the feasibility tolerance of HiGHS is an absolute 1e-6
# Scaled range of the costs: HiGHS treats reduced costs below 1e-7, and gaps below 1e-6, as zero.
_COST = 1e4
_NOISE = 1e-13  # rounding error of the bound, relative to the magnitude of its terms


@dataclass(frozen=True)
class Branched:
    """Result of branch and bound.

    ``times`` is how often each option is taken (None: no plan found), ``bound`` a lower bound on the cost,
    and ``ended`` is False if a limit stopped the search.
    """

    times: np.ndarray | None
    bound: float
    ended: bool


def relax(
    cost_X: np.ndarray, item_X: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray
) -> tuple[np.ndarray, float, float, np.ndarray] | None:
    """Solve the linear relaxation.

    Returns its solution rounded to one option per item (N,), the lower bound, the rounding error of the
    bound, and the reduced costs (X,). Returns None if the relaxation is infeasible.
    """
    if (
        solved := _one_price(cost_X, item_X, rows_LX, limits_L)
        if len(limits_L) == 1
        else _prices(cost_X, item_X, rows_LX, limits_L)
    ) is None:
        return None
    price_L, start_N = solved
    # The Lagrangian is a valid lower bound for any prices, so an inexact dual solution is safe.
    priced_X = cost_X + price_L @ rows_LX
    least_N = np.full(len(start_N), np.inf)
    np.minimum.at(least_N, item_X, priced_X)
    bound = math.fsum(least_N) - float(price_L @ limits_L)
    # Differences below the rounding error of the largest costs carry no information. Without this threshold,
    # scaling would amplify them until HiGHS optimizes noise.
    noise = _NOISE * float(np.abs(least_N).sum() + price_L @ limits_L + np.ptp(cost_X))
    return start_N, bound, noise, priced_X - least_N[item_X]


def _one_price(
    cost_X: np.ndarray, item_X: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The price of the only limit, (1,), and one option per item (N,) that satisfies it."""
    price, start_N = hull_price(cost_X, item_X, rows_LX[0], int(limits_L[0]))
    return np.array([price]), start_N


def _prices(
    cost_X: np.ndarray, item_X: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Prices of the limits (L,) and the solution rounded to one option per item (N,); None if infeasible."""
    one_each = _one_each(item_X)
    scale = float(np.ptp(cost_X)) / _COST or 1.0
    found = linprog(
        cost_X / scale, *_scaled(rows_LX, limits_L), one_each, np.ones(one_each.shape[0]), method="highs"
    )
    if _none(found):
        return None
    price_L = np.maximum(-found.ineqlin.marginals, 0) * scale / _scales(limits_L)
    return price_L, np.lexsort((found.x, item_X))[np.cumsum(np.bincount(item_X)) - 1]


def solve_counts(
    cost_X: np.ndarray,
    item_X: np.ndarray,
    rows_LX: np.ndarray,
    limits_L: np.ndarray,
    options: dict[str, float],
    count_N: np.ndarray,
) -> Branched:
    """Solve the integer program: how often the best plan takes each option, (X,).

    Item n occurs ``count_N[n]`` times. Amounts and limits are integers, so the limits passed to HiGHS are
    larger by one half: this tolerates rounding and admits no further plan.
    """
    limits = [LinearConstraint(_one_each(item_X), count_N, count_N)]
    if len(limits_L):
        rows, most_L = _scaled(rows_LX, limits_L + 0.5)
        limits.append(LinearConstraint(rows, -np.inf, most_L))
    if options["time_limit"] <= 0.0:
        return Branched(None, -np.inf, ended=False)
    with silenced():
        found = milp(
            cost_X,
            integrality=np.ones_like(cost_X),
            bounds=Bounds(0, count_N[item_X]),
            constraints=limits,
            options=options,
        )
    if found.status == _STOPPED or _LIMITED in found.message:
        bound = -np.inf if found.mip_dual_bound is None else float(found.mip_dual_bound)
        return Branched(None if found.x is None else np.rint(found.x).astype(int), bound, ended=False)
    if _none(found):
        return Branched(None, -np.inf, ended=True)
    return Branched(np.rint(found.x).astype(int), float(found.mip_dual_bound), ended=True)


def _none(found: OptimizeResult) -> bool:
    """Whether HiGHS proved infeasibility.

    Raises :class:`PlanError` if HiGHS returned no solution for another reason.
    """
    if found.x is None and found.status != _INFEASIBLE:
        raise PlanError(f"HiGHS found no plan: {found.message}")
    return found.x is None


def _scales(limits_L: np.ndarray) -> np.ndarray:
    return np.maximum(limits_L, 1) / _LIMIT


def _scaled(rows_LX: np.ndarray, limits_L: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """Rows (L, X) and limits (L,) in the scale that HiGHS receives."""
    scale_L = _scales(limits_L)
    return csr_array(rows_LX / scale_L[:, None]), limits_L / scale_L


def _one_each(item_X: np.ndarray) -> csr_array:
    """The constraint matrix (items, X) that makes each item take exactly one of its options."""
    return csr_array(
        (np.ones(len(item_X)), (item_X, np.arange(len(item_X)))), shape=(int(item_X.max()) + 1, len(item_X))
    )
