"""The exact solver: the joint problem as a mixed-integer program, solved by HiGHS (through scipy) over the few options that can matter.

The linear relaxation gives a lower bound and, by its dual prices, a reduced cost for every option: a plan that takes an option costs at
least the bound plus that. Under one limit it is solved by sorting (:mod:`bitrank_planner.lp_relaxation`), under several by HiGHS. Exchanges
(:mod:`bitrank_planner.local_search`) turn its solution into a plan, often one within the gap of the bound, and then nothing is left to do.
Otherwise every option whose reduced cost is above that plan's distance from the bound is out (the *core* remains, Balas and Zemel 1980),
and HiGHS finds the best plan in the core, which is the best of all. Exchanges of four cost a second, branching in a small core less: so
they are tried where pairs left a large one. Matrices that have the same options at the same cost (a model planned by a prior has dozens
in a row) are one variable an option there, which counts them: as single choices they could be swapped without end, and branching would
look at every order.

Some problems are beyond that (costs that are concave in bytes: the relaxation says little, and the core stays large). An :class:`Effort`
ends the search, and the best plan so far comes back with the bound that was proven: :attr:`~bitrank_planner.Plan.gap` says how much a
better plan could save at most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp
from scipy.sparse import csr_array

from bitrank_planner.errors import Infeasible, PlanError
from bitrank_planner.local_search import exchange
from bitrank_planner.lp_relaxation import hull_price
from bitrank_planner.problem import Plan, Problem, worth_having
from bitrank_planner.quiet_stdout import silenced

GAP = 1e-6  # how far above the optimum a plan may cost, relative to its cost
_LARGE = 800  # options in a core that branching may take seconds for
_STOPPED, _INFEASIBLE = 1, 2  # scipy's status
_LIMITED = "limit reached"  # scipy has no status for a limit on nodes, only HiGHS's words
_LIMIT = 1e4  # what a limit is scaled to: HiGHS keeps rows to an absolute 1e-6
_COST = (
    1e4  # what costs are scaled to: HiGHS takes reduced costs below 1e-7, and gaps below 1e-6, for nothing
)
_NOISE = 1e-13  # rounding of the bound, relative to what is added up in it


@dataclass(frozen=True)
class Effort:
    """How long :func:`exact` may search: ``seconds`` by ``clock`` or, the same on every machine, ``nodes`` of branching (None: any)."""

    seconds: float = 60.0
    nodes: int | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not self.seconds > 0 or (self.nodes is not None and self.nodes < 0):
            raise PlanError(
                f"expected seconds above 0 and nodes from 0 on, got {self.seconds} and {self.nodes}"
            )

    def started(self) -> Callable[[], float]:
        """A function that tells how many seconds are left from now on, 0 when none are."""
        end = self.clock() + self.seconds
        return lambda: max(end - self.clock(), 0.0)


@dataclass(frozen=True)
class _Branched:
    """What branching found: how often each option is taken (None: no plan), a lower bound, and whether it ended by itself."""

    times: np.ndarray | None
    bound: float
    ended: bool


def exact(problem: Problem, effort: Effort | None = None) -> Plan:
    """The plan of least cost, to a relative gap of :data:`GAP`, or the best one found with ``effort`` (default: ``Effort()``).

    ``bound`` of the plan is what no plan can cost less than. Equal problems give equal plans where the effort is not used up; a plan
    that seconds ended may differ between machines. Raises :class:`Infeasible`, with the smallest feasible budget, when no plan fits, and
    :class:`PlanError` when the limit on trainable numbers alone cannot be met, or when the effort ended before any plan was found.
    """
    problem.check_feasible()
    program = _Program(problem, effort or Effort())
    solved = program.solve()
    if solved is None:
        raise program.why_not()
    chosen_N, bound = solved
    plan = problem.plan(program.choices(chosen_N), "exact")
    plan = replace(plan, bound=min(bound, plan.cost))
    if not problem.fits(plan):  # HiGHS keeps limits to a part in 10¹⁰, a budget is whole bytes
        raise PlanError(
            f"HiGHS kept a budget of {problem.budget:,} bytes only roughly; give sizes with a common factor, in pages, say"
        )
    return plan


class _Program:
    """Binary x for the options that no other option of the same matrix beats, X of them, under L limits in whole units."""

    def __init__(self, problem: Problem, effort: Effort) -> None:
        self._problem, self._nodes, self._left = problem, effort.nodes, effort.started()
        limited = problem.max_trainable is not None
        self._options = np.array(
            [(i, c) for i, item in enumerate(problem.items) for c in worth_having(item, limited)]
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
        """A number for each item (N,), the same for items with the same costs and amounts."""
        parts_N = np.split(np.vstack([self._cost_X, self._rows_LX]), self._first_N[1:], axis=1)
        numbers: dict[bytes, int] = {}
        return np.array([numbers.setdefault(part.tobytes(), len(numbers)) for part in parts_N])

    def solve(self) -> tuple[np.ndarray, float] | None:
        """Which options (X indices, one per item) the best plan found takes, and a lower bound of every plan's cost.

        None when there is no plan.
        """
        if (self._limits_L < 0).any() or (
            relaxed := _relax(self._cost_X, self._item_X, self._rows_LX, self._limits_L)
        ) is None:
            return None
        start_N, bound, noise, reduced_X = relaxed
        arguments = (bound, GAP, self._item_X, self._cost_X, reduced_X, self._rows_LX, self._limits_L)
        best_N = exchange(start_N, *arguments, fours=False, left=self._left)
        if best_N is None:
            return self._branched(
                np.arange(len(self._cost_X)), bound, float(np.ptp(self._cost_X)) or 1.0, None
            )
        if len(self._core(best_N, bound, noise, reduced_X)) > _LARGE:
            best_N = exchange(best_N, *arguments, fours=True, left=self._left)
            assert best_N is not None  # it started from a plan that fits
        distance = float(self._cost_X[best_N].sum()) - bound
        if distance <= GAP * abs(bound) + noise:
            return best_N, bound
        return self._branched(self._core(best_N, bound, noise, reduced_X), bound, distance, best_N)

    def _core(self, best_N: np.ndarray, bound: float, noise: float, reduced_X: np.ndarray) -> np.ndarray:
        """The options (X indices) of which a plan can be made that costs less than ``best_N``; none when that is within the gap."""
        distance = float(self._cost_X[best_N].sum()) - bound
        return (
            np.flatnonzero(reduced_X <= distance + noise)
            if distance > GAP * abs(bound) + noise
            else np.array([], dtype=int)
        )

    def _branched(
        self, core: np.ndarray, bound: float, distance: float, best_N: np.ndarray | None
    ) -> tuple[np.ndarray, float] | None:
        """The best plan among the options ``core`` (X indices), to the gap, and the bound then proven.

        A plan's cost lies between ``bound`` and that plus ``distance``. ``best_N`` is the plan to improve on. Outside the core no plan
        costs less than it, so that the bound of the core, or its cost, holds for all.
        """
        count = len(self._problem.items)
        cost_X = (self._cost_X - bound / count) / distance + 1 / count  # a plan's lies between 1 and 2
        gap = GAP * abs(bound) / distance / 2
        found_N, scaled, ended = self._least(core, cost_X, self._rows_LX, self._limits_L, gap)
        proven = max(bound, bound + (scaled - 1) * distance)
        if found_N is None and best_N is None:
            if not ended:
                raise PlanError(
                    "no plan was found in the time given, and none was shown to be missing; allow more seconds"
                )
            return None
        plans = [plan_N for plan_N in (best_N, found_N) if plan_N is not None]
        least_N = min(plans[::-1], key=lambda plan_N: float(self._cost_X[plan_N].sum()))
        return least_N, proven

    def _least(
        self, core: np.ndarray, cost_X: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray, gap: float
    ) -> tuple[np.ndarray | None, float, bool]:
        """Options among ``core``, one per item, of least cost within the limits: items that are alike as one, with how many take what.

        Also a lower bound of that cost, and whether the search ended by itself.
        """
        item_K = self._item_X[core]
        kinds = np.stack(
            [self._alike_N[item_K], core - self._first_N[item_K]]
        )  # a class of items, and an option of it
        (class_C, option_C), one_C = np.unique(kinds, axis=1, return_index=True)
        limits = {"mip_rel_gap": gap, "time_limit": self._left()}
        if self._nodes is not None:
            limits["node_limit"] = self._nodes
        amounts_LC = rows_LX[:, core[one_C]]
        found = _milp(cost_X[core[one_C]], class_C, amounts_LC, limits_L, limits, np.bincount(self._alike_N))
        if found.times is None:
            return None, found.bound, found.ended
        order = np.argsort(self._alike_N, kind="stable")
        return np.sort(self._first_N[order] + np.repeat(option_C, found.times)), found.bound, found.ended

    def why_not(self) -> PlanError:
        """Too few bytes under the limit on trainable numbers, or that limit by itself."""
        problem, limit = self._problem, self._problem.max_trainable or 0
        everything = np.arange(len(self._cost_X))
        cost_X = self._rows_LX[0].astype(float)
        found, _, ended = self._least(everything, cost_X, self._rows_LX[1:], self._limits_L[1:], 0)
        if not ended:
            return PlanError(
                f"no plan with at most {limit:,} trainable numbers fits into {problem.budget:,} bytes; how many it would take was not "
                "found in the time given. Give more bytes, or allow more trainable numbers or seconds."
            )
        if found is None:
            least = sum(min(o.trainable for o in item.options) for item in problem.items)
            return PlanError(
                f"at most {limit:,} trainable numbers are allowed, every plan has {least:,} or more; raise that limit"
            )
        needed = problem.plan(self.choices(found), "exact").nbytes
        return Infeasible(
            f"no plan with at most {limit:,} trainable numbers fits into {problem.budget:,} bytes: the smallest takes {needed:,}. "
            f"Give {needed:,} or more, or allow more trainable numbers.",
            needed,
        )

    def choices(self, chosen_N: np.ndarray) -> list[int]:
        """The option of each item."""
        return [int(c) for _, c in sorted(map(tuple, self._options[chosen_N]))]

    def _units(self, amounts: list[int], limit: int) -> tuple[np.ndarray, int]:
        """Amounts (X,) over the least of their item, and what is left of ``limit`` for them, in the largest unit that divides them all."""
        least = [min(row) for row in np.split(np.array(amounts), np.flatnonzero(np.diff(self._item_X)) + 1)]
        over = np.array(amounts) - np.array(least)[self._item_X]
        unit = math.gcd(*over.tolist()) or 1
        return over // unit, (limit - sum(map(int, least))) // unit


def _relax(
    cost_X: np.ndarray, item_X: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray
) -> tuple[np.ndarray, float, float, np.ndarray] | None:
    """The linear relaxation: its solution rounded to an option per item (N,), the lower bound, that bound's noise, reduced costs (X,).

    None when there is no solution.
    """
    if (
        solved := _one_price(cost_X, item_X, rows_LX, limits_L)
        if len(limits_L) == 1
        else _prices(cost_X, item_X, rows_LX, limits_L)
    ) is None:
        return None
    price_L, start_N = solved
    # The bound from the prices: for any prices the Lagrangian is a true lower bound.
    priced_X = cost_X + price_L @ rows_LX
    least_N = np.full(len(start_N), np.inf)
    np.minimum.at(least_N, item_X, priced_X)
    bound = math.fsum(least_N) - float(price_L @ limits_L)
    # What lies below the rounding of the largest costs is no difference: scaled up it would be all that HiGHS sees.
    noise = _NOISE * float(np.abs(least_N).sum() + price_L @ limits_L + np.ptp(cost_X))
    return start_N, bound, noise, priced_X - least_N[item_X]


def _one_price(
    cost_X: np.ndarray, item_X: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The price of the only limit, and an option per item (N,) that keeps it."""
    price, start_N = hull_price(cost_X, item_X, rows_LX[0], int(limits_L[0]))
    return np.array([price]), start_N


def _prices(
    cost_X: np.ndarray, item_X: np.ndarray, rows_LX: np.ndarray, limits_L: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Prices of the limits (L,), and the relaxation's solution rounded to an option per item (N,); None when there is no solution."""
    one_each = _one_each(item_X)
    scale = float(np.ptp(cost_X)) / _COST or 1.0
    found = linprog(
        cost_X / scale, *_scaled(rows_LX, limits_L), one_each, np.ones(one_each.shape[0]), method="highs"
    )
    if _none(found):
        return None
    price_L = np.maximum(-found.ineqlin.marginals, 0) * scale / _scales(limits_L)
    return price_L, np.lexsort((found.x, item_X))[np.cumsum(np.bincount(item_X)) - 1]


def _milp(
    cost_X: np.ndarray,
    item_X: np.ndarray,
    rows_LX: np.ndarray,
    limits_L: np.ndarray,
    options: dict[str, float],
    count_N: np.ndarray,
) -> _Branched:
    """How often a best plan takes each option (X,), item n being there ``count_N[n]`` times.

    Limits are whole numbers, so half of one is spare.
    """
    limits = [LinearConstraint(_one_each(item_X), count_N, count_N)]
    if len(limits_L):
        rows, most_L = _scaled(rows_LX, limits_L + 0.5)
        limits.append(LinearConstraint(rows, -np.inf, most_L))
    if options["time_limit"] <= 0.0:
        return _Branched(None, -np.inf, ended=False)
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
        return _Branched(None if found.x is None else np.rint(found.x).astype(int), bound, ended=False)
    if _none(found):
        return _Branched(None, -np.inf, ended=True)
    return _Branched(np.rint(found.x).astype(int), float(found.mip_dual_bound), ended=True)


def _none(found: OptimizeResult) -> bool:
    """Whether HiGHS showed that there is no solution. Raises :class:`PlanError` when it gave none without showing that."""
    if found.x is None and found.status != _INFEASIBLE:
        raise PlanError(f"HiGHS found no plan: {found.message}")
    return found.x is None


def _scales(limits_L: np.ndarray) -> np.ndarray:
    return np.maximum(limits_L, 1) / _LIMIT


def _scaled(rows_LX: np.ndarray, limits_L: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """Rows and limits as HiGHS gets them."""
    scale_L = _scales(limits_L)
    return csr_array(rows_LX / scale_L[:, None]), limits_L / scale_L


def _one_each(item_X: np.ndarray) -> csr_array:
    """(items, X): each item takes exactly one of its options."""
    return csr_array(
        (np.ones(len(item_X)), (item_X, np.arange(len(item_X)))), shape=(int(item_X.max()) + 1, len(item_X))
    )
