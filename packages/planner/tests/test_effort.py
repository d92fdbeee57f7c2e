"""When the search is ended: the plan fits, the bound holds, and both are the same every time where seconds did not decide."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bitrank_planner import GAP, Effort, Infeasible, Item, Option, PlanError, Problem, exact
from hypothesis import given, settings
from hypothesis import strategies as st
from made import every_plan, small_problems

FOREVER = 1e9


def concave(matrices: int, ways: int, seed: int = 0, largest: int = 1000) -> Problem:
    """Costs that are concave in bytes and, per byte, the same for all: the relaxation takes each matrix at its largest or its smallest,
    its prices tell no two apart, and branching has to find the sum of bytes that fits best."""
    random = np.random.default_rng(seed)
    share_O = np.arange(ways) / (ways - 1)
    items = []
    for number in range(matrices):
        top = int(random.integers(largest // 10, largest))
        sizes, costs = np.rint(top * share_O).astype(int) + 1, top * (1 - share_O**2)
        options = [
            Option(f"int{way}", 0, int(size), float(cost))
            for way, (size, cost) in enumerate(zip(sizes, costs, strict=True))
        ]
        items.append(Item(f"m{number}", tuple(options)))
    low, high = (sum(pick(option.nbytes for option in item.options) for item in items) for pick in (min, max))
    return Problem(tuple(items), (low + high) // 2 + 7)


def least_cost(problem: Problem) -> float:
    """The least cost of a plan that fits, by dynamic programming over bytes."""
    best_B = np.zeros(problem.available + 1)
    for item in problem.items:
        shifted = [
            np.concatenate(
                [np.full(option.nbytes, np.inf), best_B[: len(best_B) - option.nbytes] + option.cost]
            )
            for option in item.options
            if option.nbytes < len(best_B)
        ]
        best_B = np.minimum.reduce(shifted)
    return float(best_B.min())


@pytest.mark.parametrize("nodes", [0, 1, 30])
@pytest.mark.parametrize("seed", range(4))
def test_a_search_that_is_ended_gives_a_plan_that_fits_and_a_bound_that_holds(nodes: int, seed: int) -> None:
    problem = concave(30, 8, seed)
    plan = exact(problem, Effort(FOREVER, nodes))
    best = least_cost(problem)
    assert problem.fits(plan) and plan.bound is not None and plan.gap is not None
    assert plan.bound <= best * (1 + 1e-12) and best <= plan.cost * (1 + 1e-12)
    assert 0 <= plan.gap < 0.01
    again = exact(problem, Effort(FOREVER, nodes))
    assert (again, again.bound) == (plan, plan.bound)


def test_more_nodes_never_cost_more_and_never_prove_less() -> None:
    problem = concave(30, 8, 2)
    plans = [exact(problem, Effort(FOREVER, nodes)) for nodes in (0, 10, 100)]
    costs, bounds = [plan.cost for plan in plans], [plan.bound for plan in plans]
    assert costs == sorted(costs, reverse=True) and bounds == pytest.approx(sorted(bounds), rel=1e-12)  # type: ignore[type-var]


def test_two_hundred_matrices_of_thirty_concave_options_end() -> None:
    """The like of a problem that was still searched after 95 seconds."""
    problem = concave(200, 30, largest=10**6)
    plan = exact(problem, Effort(FOREVER, nodes=20))
    assert problem.fits(plan) and plan.gap is not None and plan.gap < 1e-3


def test_without_time_the_relaxations_own_plan_comes_back_with_its_bound() -> None:
    """A clock that runs out at once: no exchange, no branching."""
    ticks = itertools.count(0.0, 100.0)
    problem = concave(30, 8)
    plan = exact(problem, Effort(60.0, clock=lambda: next(ticks)))
    best = least_cost(problem)
    assert problem.fits(plan) and plan.bound is not None and plan.bound <= best <= plan.cost
    assert plan.gap is not None and plan.gap > 0


def test_exchanges_stop_when_the_clock_does() -> None:
    """Each look at the clock takes a second: with more of them the plan is no worse."""
    costs = []
    for seconds in (2.0, 4.0, 1e6):
        ticks = itertools.count(0.0, 1.0)
        costs.append(exact(concave(60, 8), Effort(seconds, 0, clock=lambda ticks=ticks: next(ticks))).cost)  # type: ignore[misc]
    assert costs == sorted(costs, reverse=True)


@settings(max_examples=150, deadline=None)
@given(st.booleans().flatmap(lambda limited: small_problems(limited=limited)), st.sampled_from([None, 0, 1]))
def test_the_bound_holds_for_every_plan(problem: Problem, nodes: int | None) -> None:
    try:
        plan = exact(problem, Effort(FOREVER, nodes))
    except PlanError:
        return
    costs = [other.cost for other in every_plan(problem) if problem.fits(other)]
    slack = 1e-9 * max(1.0, *(abs(cost) for cost in costs))
    assert problem.fits(plan) and plan.bound is not None and plan.bound <= min(costs) + slack
    if nodes is None:
        rounding = 1e-12 * sum(max(abs(option.cost) for option in item.options) for item in problem.items)
        assert plan.cost - plan.bound <= 2 * GAP * abs(plan.cost) + rounding


def test_a_search_that_ended_by_itself_is_the_one_without_a_limit() -> None:
    problem = concave(12, 5)
    assert exact(problem, Effort(FOREVER, 10**6)) == exact(problem)
    assert exact(problem).gap == pytest.approx(0, abs=GAP)


def test_two_limits_and_no_time_say_that_nothing_was_found() -> None:
    """The smallest in bytes trains too many numbers, the other way about is too large: only branching could tell."""
    options = (Option("a", 1, 10, 1.0, 30), Option("b", 1, 11, 1.0, 20), Option("c", 1, 30, 1.0, 10))
    problem = Problem(tuple(Item(f"m{n}", options) for n in range(3)), 33, max_trainable=60)
    plan = exact(problem)
    assert problem.fits(plan)
    ticks = itertools.count(0.0, 100.0)
    try:
        found = exact(problem, Effort(60.0, clock=lambda: next(ticks)))
    except PlanError as error:
        assert "in the time given" in str(error) and not isinstance(error, Infeasible)
    else:
        assert problem.fits(found)


@pytest.mark.parametrize("words", [{"seconds": 0.0}, {"seconds": -1.0}, {"nodes": -1}])
def test_an_effort_of_nothing_is_refused(words: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="seconds above 0 and nodes from 0 on"):
        Effort(**words)  # type: ignore[arg-type]


def test_solvers_that_prove_nothing_have_no_bound() -> None:
    problem = concave(4, 3)
    plan = problem.plan([0] * 4, "none")
    assert plan.bound is None and plan.gap is None
