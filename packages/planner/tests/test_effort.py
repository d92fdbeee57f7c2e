"""Limits of the exact search: the plan fits, the bound is valid, node limits are reproducible."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from bitrank_planner import GAP, Effort, Infeasible, Item, Option, PlanError, Problem, exact
from hypothesis import given, settings
from hypothesis import strategies as st
from made import every_plan, small_problems

NO_TIME_LIMIT = 1e9


def concave(matrices: int, option_count: int, seed: int = 0, largest: int = 1000) -> Problem:
    """Costs that are concave in bytes and, per byte, equal for all matrices.

    The relaxation takes each matrix at its largest or smallest option and its prices distinguish no two
    matrices, so branch and bound has to find the best-fitting sum of bytes.
    """
    random = np.random.default_rng(seed)
    share_O = np.arange(option_count) / (option_count - 1)
    items = []
    for number in range(matrices):
        top = int(random.integers(largest // 10, largest))
        sizes, costs = np.rint(top * share_O).astype(int) + 1, top * (1 - share_O**2)
        options = [
            Option(f"int{index}", 0, int(size), float(cost))
            for index, (size, cost) in enumerate(zip(sizes, costs, strict=True))
        ]
        items.append(Item(f"m{number}", tuple(options)))
    low, high = (sum(pick(option.nbytes for option in item.options) for item in items) for pick in (min, max))
    return Problem(tuple(items), (low + high) // 2 + 7)


def least_cost(problem: Problem) -> float:
    """Least cost of a plan that fits, by dynamic programming over bytes."""
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
def test_stopped_search_gives_a_feasible_plan_and_a_valid_bound(nodes: int, seed: int) -> None:
    problem = concave(30, 8, seed)
    plan = exact(problem, Effort(NO_TIME_LIMIT, nodes))
    best = least_cost(problem)
    assert problem.fits(plan) and plan.bound is not None and plan.gap is not None
    assert plan.bound <= best * (1 + 1e-12) and best <= plan.cost * (1 + 1e-12)
    assert 0 <= plan.gap < 0.01
    again = exact(problem, Effort(NO_TIME_LIMIT, nodes))
    assert (again, again.bound) == (plan, plan.bound)


def test_more_nodes_never_worsen_the_cost_or_the_bound() -> None:
    problem = concave(30, 8, 2)
    plans = [exact(problem, Effort(NO_TIME_LIMIT, nodes)) for nodes in (0, 10, 100)]
    costs, bounds = [plan.cost for plan in plans], [plan.bound for plan in plans]
    assert costs == sorted(costs, reverse=True)
    assert bounds == pytest.approx(sorted(bounds), rel=1e-12)  # type: ignore[type-var]


def test_node_limit_ends_a_large_concave_problem() -> None:
    """Without a limit, the search on a problem like this one had not ended after 95 seconds."""
    problem = concave(200, 30, largest=10**6)
    plan = exact(problem, Effort(NO_TIME_LIMIT, nodes=20))
    assert problem.fits(plan) and plan.gap is not None and plan.gap < 1e-3


def test_without_time_the_rounded_relaxation_is_returned_with_its_bound() -> None:
    """The clock exceeds the limit at its second call, so neither exchanges nor branching run."""
    ticks = itertools.count(0.0, 100.0)
    problem = concave(30, 8)
    plan = exact(problem, Effort(60.0, clock=lambda: next(ticks)))
    best = least_cost(problem)
    assert problem.fits(plan) and plan.bound is not None and plan.bound <= best <= plan.cost
    assert plan.gap is not None and plan.gap > 0


def test_more_time_never_worsens_the_plan() -> None:
    """Each call of the clock takes one second."""
    costs = []
    for seconds in (2.0, 4.0, 1e6):
        clock = partial(next, itertools.count(0.0, 1.0))
        costs.append(exact(concave(60, 8), Effort(seconds, 0, clock=clock)).cost)
    assert costs == sorted(costs, reverse=True)


@settings(max_examples=150, deadline=None)
@given(st.booleans().flatmap(lambda limited: small_problems(limited=limited)), st.sampled_from([None, 0, 1]))
def test_bound_is_at_most_the_cost_of_every_plan(problem: Problem, nodes: int | None) -> None:
    try:
        plan = exact(problem, Effort(NO_TIME_LIMIT, nodes))
    except PlanError:
        return
    costs = [other.cost for other in every_plan(problem) if problem.fits(other)]
    slack = 1e-9 * max(1.0, *(abs(cost) for cost in costs))
    assert problem.fits(plan) and plan.bound is not None and plan.bound <= min(costs) + slack
    if nodes is None:
        rounding = 1e-12 * sum(max(abs(option.cost) for option in item.options) for item in problem.items)
        assert plan.cost - plan.bound <= 2 * GAP * abs(plan.cost) + rounding


def test_unreached_node_limit_does_not_change_the_plan() -> None:
    problem = concave(12, 5)
    assert exact(problem, Effort(NO_TIME_LIMIT, 10**6)) == exact(problem)
    assert exact(problem).gap == pytest.approx(0, abs=GAP)


def test_two_limits_without_time_raise_or_give_a_feasible_plan() -> None:
    """The option smallest in bytes trains too many numbers and vice versa, so only branching can decide."""
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


@pytest.mark.parametrize("arguments", [{"seconds": 0.0}, {"seconds": -1.0}, {"nodes": -1}])
def test_effort_without_time_or_with_negative_nodes_raises(arguments: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="seconds above 0 and nodes from 0 on"):
        Effort(**arguments)  # type: ignore[arg-type]


def test_plan_without_a_bound_has_no_gap() -> None:
    problem = concave(4, 3)
    plan = problem.plan([0] * 4, "none")
    assert plan.bound is None and plan.gap is None
