"""The exact solver: the joint problem as a mixed-integer program (HiGHS, through scipy) over the few options that can matter.

The linear relaxation gives a lower bound and, by its dual prices, a reduced cost for every option: a plan that takes an option costs
at least the bound plus that. So the program is solved over the options whose reduced cost is below a threshold (the *core*, Balas and
Zemel 1980), and its solution is optimal for all options once it costs no more than bound + threshold; otherwise the threshold grows.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from bitrank_planner.errors import Infeasible, PlanError
from bitrank_planner.problem import Plan, Problem, unpruned

GAP = 1e-6  # relative: how far from the optimum the plan's cost may be
_INFEASIBLE = 2  # scipy's status
_CORE = 3  # options an item in the first core, on average
_LIMIT = 1e4  # what a limit is scaled to: HiGHS keeps limits to an absolute 1e-6
_TIGHTER = 10  # times that a plan a few bytes too large is solved again under a tighter limit


def exact(problem: Problem) -> Plan:
    """The plan of least cost, to a relative gap of :data:`GAP`. Equal problems give equal plans.

    Raises :class:`Infeasible`, with the smallest feasible budget, when no plan fits.
    """
    problem.check_feasible()
    program = _Program(problem)
    allowed = problem.available
    for _ in range(_TIGHTER):
        choices = program.solve(allowed)
        if choices is None:
            break
        plan = problem.plan(choices, "exact")
        if problem.fits(plan):
            return plan
        allowed -= plan.nbytes - problem.budget  # the program keeps its limits to a millionth, a budget is whole bytes
    raise program.why_not()


class _Program:
    """Binary x_ic for the options that no other option of the same matrix beats."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._options = np.array([(i, c) for i, item in enumerate(problem.items) for c in unpruned(item)])
        taken = [problem.items[i].options[c] for i, c in self._options]
        self._cost_X = np.array([o.cost for o in taken])
        self._bytes_X = np.array([o.nbytes for o in taken], float)
        self._trainable_X = np.array([o.trainable for o in taken], float)

    def solve(self, available: int) -> list[int] | None:
        """Choices that take ``available`` bytes or less (to HiGHS's tolerance); None when there are none."""
        rows_LX, limits_L = self._rows(available)
        relaxed = _relax(self._cost_X, self._items(), rows_LX, limits_L)
        if relaxed is None:
            return None
        bound, reduced_X = relaxed
        threshold = _wider(reduced_X, _CORE * len(self._problem.items) // 2)
        while True:
            core = np.flatnonzero(reduced_X <= threshold)
            found = _milp(self._cost_X[core], self._items()[core], rows_LX[:, core], limits_L)
            if found is not None and (cost := float(self._cost_X[core] @ found)) <= bound + threshold + GAP * abs(bound):
                return self._choices(core[found])
            if len(core) == len(reduced_X):
                return None if found is None else self._choices(core[found])
            threshold = cost - bound if found is not None else _wider(reduced_X, len(core))

    def why_not(self) -> PlanError:
        """Too few bytes under the limit on trainable numbers, or that limit by itself."""
        problem, limit = self._problem, self._problem.max_trainable or 0
        rows_LX, limits_L = self._rows(problem.available)
        found = _milp(self._bytes_X, self._items(), rows_LX[1:], limits_L[1:])
        if found is None:
            least = sum(min(o.trainable for o in item.options) for item in problem.items)
            return PlanError(f"at most {limit:,} trainable numbers are allowed, every plan has {least:,} or more")
        needed = problem.plan(self._choices(np.flatnonzero(found)), "exact").nbytes
        return Infeasible(
            f"no plan with at most {limit:,} trainable numbers fits into {problem.budget:,} bytes; the smallest takes {needed:,}", needed
        )

    def _items(self) -> np.ndarray:
        """The item of each option (X,)."""
        return self._options[:, 0]

    def _rows(self, available: int) -> tuple[np.ndarray, np.ndarray]:
        """What each option takes of each limit (L, X), and the limits (L,), in HiGHS's own units."""
        amounts, limits = [self._bytes_X], [available]
        if self._problem.max_trainable is not None:
            amounts.append(self._trainable_X)
            limits.append(self._problem.max_trainable)
        scale_L = np.maximum(np.array(limits, float), 1) / _LIMIT
        return np.stack(amounts) / scale_L[:, None], np.array(limits) / scale_L

    def _choices(self, chosen_N: np.ndarray) -> list[int]:
        return [int(c) for _, c in sorted(map(tuple, self._options[chosen_N]))]


def _wider(reduced_X: np.ndarray, size: int) -> float:
    """The threshold of a core twice as large."""
    return float(np.sort(reduced_X)[min(2 * size, len(reduced_X)) - 1])


def _relax(cost_X: np.ndarray, item_X: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray) -> tuple[float, np.ndarray] | None:
    """The lower bound of the linear relaxation and the reduced cost of each option (X,); None when it is infeasible."""
    one_each = _one_each(item_X)
    found = linprog(cost_X, A_ub=csr_array(rows_LX), b_ub=limits_L, A_eq=one_each, b_eq=np.ones(one_each.shape[0]), method="highs")
    if found.x is None:
        return None
    # Prices from the solver, the bound from the prices: for any prices the Lagrangian is a true lower bound.
    priced_X = cost_X + np.maximum(-found.ineqlin.marginals, 0) @ rows_LX
    least_I = np.full(one_each.shape[0], np.inf)
    np.minimum.at(least_I, item_X, priced_X)
    bound = float(least_I.sum() - np.maximum(-found.ineqlin.marginals, 0) @ limits_L)
    return bound, priced_X - least_I[item_X]


def _milp(cost_X: np.ndarray, item_X: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray) -> np.ndarray | None:
    """Which options (X,) a best plan takes, as booleans; None when there is no plan."""
    one_each = _one_each(item_X)
    limits = [LinearConstraint(one_each, 1, 1)]
    if len(limits_L):
        limits.append(LinearConstraint(csr_array(rows_LX), -np.inf, limits_L))
    if (one_each.sum(axis=1) == 0).any():
        return None
    found = milp(cost_X, integrality=np.ones_like(cost_X), bounds=Bounds(0, 1), constraints=limits, options={"mip_rel_gap": GAP})
    if found.x is None and found.status != _INFEASIBLE:
        raise PlanError(f"HiGHS found no plan: {found.message}")
    return None if found.x is None else found.x > 0.5


def _one_each(item_X: np.ndarray) -> csr_array:
    """(items, X): each item takes exactly one of its options."""
    return csr_array((np.ones(len(item_X)), (item_X, np.arange(len(item_X)))), shape=(int(item_X.max()) + 1, len(item_X)))
