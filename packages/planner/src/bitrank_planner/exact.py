"""Exact solver: a mixed-integer program, reduced to a small core and solved by HiGHS through scipy.

1. The linear relaxation gives a lower bound and, from its dual prices, a reduced cost for every option. A
   plan that takes an option costs at least the bound plus that option's reduced cost. With one limit, sorting
   solves the relaxation (:mod:`bitrank_planner.lp_relaxation`); with several, HiGHS does.
2. Exchanges (:mod:`bitrank_planner.local_search`) turn the rounded solution into a feasible plan. If its cost
   is within :data:`GAP` of the bound, the solver stops here.
3. Otherwise every option whose reduced cost exceeds the plan's distance from the bound is removed. The
   remaining options form the *core* (Balas and Zemel 1980). HiGHS finds the best plan in the core, which is
   the best plan overall.

Exchanges of four options take about a second, branching in a small core takes less. Exchanges of four
therefore run only if the core is large after exchanges of two.

Matrices with the same options at the same costs form one class, and one integer variable per option counts
how many matrices of the class take it. A model planned with a prior has dozens of such matrices; with one
binary variable for each of them, branch and bound would visit every permutation.

Matrices that share a format are joined to one item first (:mod:`bitrank_planner.ties`).

Some problems stay too large, for example with costs that are concave in bytes: the relaxation is loose and
the core stays large. :class:`Effort` limits the search. The solver then returns the best plan found and the
proven lower bound; :attr:`~bitrank_planner.Plan.gap` is the largest relative saving that a better plan could
achieve.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bitrank_planner.errors import Infeasible, PlanError
from bitrank_planner.highs import relax, solve_counts
from bitrank_planner.local_search import Relaxed, exchange
from bitrank_planner.problem import Plan, Problem, non_dominated
from bitrank_planner.ties import join_ties

GAP = 1e-6  # largest accepted excess over the optimal cost, relative to the cost
_LARGE = 800  # size of a core, in options, from which branching may take seconds


@dataclass(frozen=True)
class Effort:
    """Limits of :func:`exact`: wall-clock ``seconds`` and branch-and-bound ``nodes`` (None: unlimited).

    ``clock`` returns the current time in seconds. A node limit gives the same plan on every machine, a time
    limit may not. Raises :class:`PlanError` for ``seconds`` that are not positive or negative ``nodes``.
    """

    seconds: float = 60.0
    nodes: int | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not self.seconds > 0 or (self.nodes is not None and self.nodes < 0):
            raise PlanError(
                f"expected seconds above 0 and nodes from 0 on, got {self.seconds} and {self.nodes}"
            )

    def started(self) -> Callable[[], float]:
        """Start the clock and return a function that returns the remaining seconds, at least 0."""
        end = self.clock() + self.seconds
        return lambda: max(end - self.clock(), 0.0)


def exact(problem: Problem, effort: Effort | None = None) -> Plan:
    """Return the plan of least cost, to a relative gap of :data:`GAP`, or the best found within ``effort``.

    ``effort`` defaults to ``Effort()``. The plan's ``bound`` is a proven lower bound on the cost of every
    plan. Equal problems give equal plans unless a limit of ``effort`` stops the search; a plan found under a
    time limit may differ between machines.

    Raises :class:`Infeasible`, with the smallest feasible budget, if no plan fits. Raises :class:`PlanError`
    if the limit on trainable numbers cannot be met at any budget, or if a limit of ``effort`` stopped the
    search before it found a plan.
    """
    if problem.max_trainable is None:  # else the smallest plan may train too many numbers: see `why_not`
        problem.check_feasible()
    if problem.ties:
        joined = join_ties(problem)
        return joined.expand(exact(joined.problem, effort))
    program = _Program(problem, effort or Effort())
    solved = program.solve()
    if solved is None:
        raise program.why_not()
    chosen_N, bound = solved
    plan = problem.plan(program.choices(chosen_N), "exact")
    plan = replace(plan, bound=min(bound, plan.cost))
    if not problem.fits(plan):  # HiGHS satisfies rows to 1 part in 10¹⁰; a budget is exact
        raise PlanError(
            f"HiGHS kept a budget of {problem.budget:,} bytes only roughly; give sizes with a common factor, "
            "in pages, say"
        )
    return plan


class _Program:
    """The integer program over the X non-dominated options of all matrices, under L limits in whole units."""

    def __init__(self, problem: Problem, effort: Effort) -> None:
        self._problem, self._nodes, self._left = problem, effort.nodes, effort.started()
        limited = problem.max_trainable is not None
        self._options = np.array(
            [(i, c) for i, item in enumerate(problem.items) for c in non_dominated(item, limited)]
        )
        self._item_X = self._options[:, 0]
        taken = [problem.items[i].options[c] for i, c in self._options]
        self._cost_X = np.array([o.cost for o in taken])
        units = [self._units([o.nbytes for o in taken], problem.available)]
        if problem.max_trainable is not None:
            units.append(self._units([o.trainable for o in taken], problem.max_trainable))
        self._rows_LX = np.stack([row_X for row_X, _ in units])
        self._limits_L = np.array([limit for _, limit in units])
        self._first_N = np.searchsorted(self._item_X, np.arange(len(problem.items)))
        self._alike_N = self._alike()

    def _alike(self) -> np.ndarray:
        """The class of each item, (N,): items with equal costs and amounts share a class."""
        parts_N = np.split(np.vstack([self._cost_X, self._rows_LX]), self._first_N[1:], axis=1)
        numbers: dict[bytes, int] = {}
        return np.array([numbers.setdefault(part.tobytes(), len(numbers)) for part in parts_N])

    def solve(self) -> tuple[np.ndarray, float] | None:
        """The options of the best plan found (N indices into X) and a lower bound on the cost of every plan.

        Returns None if there is no plan.
        """
        if (self._limits_L < 0).any() or (
            relaxed := relax(self._cost_X, self._item_X, self._rows_LX, self._limits_L)
        ) is None:
            return None
        start_N, bound, noise, reduced_X = relaxed
        found = Relaxed(self._item_X, self._cost_X, reduced_X, self._rows_LX, self._limits_L, bound)
        best_N = exchange(start_N, found, GAP, fours=False, left=self._left)
        if best_N is None:
            return self._branched(
                np.arange(len(self._cost_X)), bound, float(np.ptp(self._cost_X)) or 1.0, None
            )
        if len(self._core(best_N, bound, noise, reduced_X)) > _LARGE:
            best_N = exchange(best_N, found, GAP, fours=True, left=self._left)
            assert best_N is not None  # exchange() starts from a feasible plan here, so it returns one
        distance = float(self._cost_X[best_N].sum()) - bound
        if distance <= GAP * abs(bound) + noise:
            return best_N, bound
        return self._branched(self._core(best_N, bound, noise, reduced_X), bound, distance, best_N)

    def _core(self, best_N: np.ndarray, bound: float, noise: float, reduced_X: np.ndarray) -> np.ndarray:
        """Options (indices into X) that a plan cheaper than ``best_N`` can contain; empty within the gap."""
        distance = float(self._cost_X[best_N].sum()) - bound
        return (
            np.flatnonzero(reduced_X <= distance + noise)
            if distance > GAP * abs(bound) + noise
            else np.array([], dtype=int)
        )

    def _branched(
        self, core: np.ndarray, bound: float, distance: float, best_N: np.ndarray | None
    ) -> tuple[np.ndarray, float] | None:
        """The best plan in ``core`` (indices into X), to the gap, and the lower bound proven so far.

        The cost of the optimal plan is between ``bound`` and ``bound + distance``. ``best_N`` is the
        incumbent plan or None. No plan with an option outside the core costs less than the incumbent, so the
        bound of the core, capped at the cost of the incumbent, holds for all plans.
        """
        count = len(self._problem.items)
        cost_X = (self._cost_X - bound / count) / distance + 1 / count  # the optimum is scaled to [1, 2]
        gap = GAP * abs(bound) / distance / 2
        found_N, scaled, ended = self._least(core, cost_X, self._rows_LX, self._limits_L, gap)
        proven = max(bound, bound + (scaled - 1) * distance)
        if found_N is None and best_N is None:
            if not ended:
                raise PlanError(
                    "no plan was found in the time given, and none was shown to be missing; allow more "
                    "seconds"
                )
            return None
        plans = [plan_N for plan_N in (best_N, found_N) if plan_N is not None]
        least_N = min(plans[::-1], key=lambda plan_N: float(self._cost_X[plan_N].sum()))
        return least_N, proven

    def _least(
        self, core: np.ndarray, cost_X: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray, gap: float
    ) -> tuple[np.ndarray | None, float, bool]:
        """The cheapest options within the limits, one per item (N indices into X); None if none are found.

        The result is limited to ``core``. Also returns a lower bound on the cost and whether the search
        completed. Items of one class share their variables, which count the items that take each option.
        """
        item_K = self._item_X[core]
        kinds = np.stack(
            [self._alike_N[item_K], core - self._first_N[item_K]]
        )  # rows: class of the item, option within the item
        (class_C, option_C), one_C = np.unique(kinds, axis=1, return_index=True)
        limits = {"mip_rel_gap": gap, "time_limit": self._left()}
        if self._nodes is not None:
            limits["node_limit"] = self._nodes
        amounts_LC = rows_LX[:, core[one_C]]
        count_N = np.bincount(self._alike_N)
        found = solve_counts(cost_X[core[one_C]], class_C, amounts_LC, limits_L, limits, count_N)
        if found.times is None:
            return None, found.bound, found.ended
        order = np.argsort(self._alike_N, kind="stable")
        return np.sort(self._first_N[order] + np.repeat(option_C, found.times)), found.bound, found.ended

    def why_not(self) -> PlanError:
        """The error for a problem without a plan.

        Either the budget is too small under the limit on trainable numbers, or no plan meets that limit.
        """
        problem, limit = self._problem, self._problem.max_trainable or 0
        everything = np.arange(len(self._cost_X))
        cost_X = self._rows_LX[0].astype(float)
        found, _, ended = self._least(everything, cost_X, self._rows_LX[1:], self._limits_L[1:], 0)
        if not ended:
            return PlanError(
                f"no plan with at most {limit:,} trainable numbers fits into {problem.budget:,} bytes; how "
                "many it would take was not "
                "found in the time given. Give more bytes, or allow more trainable numbers or seconds."
            )
        if found is None:
            least = 0
            for item in problem.items:
                least += min(option.trainable for option in item.options)
            return PlanError(
                f"at most {limit:,} trainable numbers are allowed, every plan has {least:,} or more; raise "
                "that limit"
            )
        needed = problem.plan(self.choices(found), "exact").nbytes
        # More trainable numbers help only if the smallest of all plans fits.
        other = "allow more trainable numbers"
        if problem.smallest > problem.budget:
            other = "offer smaller formats or ranks"
        return Infeasible(
            f"no plan with at most {limit:,} trainable numbers fits into {problem.budget:,} bytes: the "
            f"smallest takes {needed:,}. "
            f"Give {needed:,} or more, or {other}.",
            needed,
        )

    def choices(self, chosen_N: np.ndarray) -> list[int]:
        """The option index of each item."""
        return [int(c) for _, c in sorted(map(tuple, self._options[chosen_N]))]

    def _units(self, amounts: list[int], limit: int) -> tuple[np.ndarray, int]:
        """Amounts above the smallest of their item, (X,), and the limit that remains for them.

        Both are in units of the greatest common divisor of the amounts.
        """
        least = [min(row) for row in np.split(np.array(amounts), np.flatnonzero(np.diff(self._item_X)) + 1)]
        over = np.array(amounts) - np.array(least)[self._item_X]
        unit = math.gcd(*over.tolist()) or 1
        return over // unit, (limit - sum(map(int, least))) // unit
