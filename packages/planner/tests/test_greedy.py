"""Greedy plans fit and never beat exact by more than its gap; with steps of one size greedy is exact."""

from __future__ import annotations

import pytest
from bitrank_planner import GAP, Infeasible, Item, Option, PlanError, Problem, exact, greedy
from hypothesis import given, settings
from made import language_model, small_problems


@settings(max_examples=200, deadline=None)
@given(small_problems())
def test_greedy_plan_fits_and_never_beats_exact(problem: Problem) -> None:
    if problem.smallest > problem.budget:
        with pytest.raises(Infeasible) as caught:
            greedy(problem)
        assert caught.value.smallest == problem.smallest
        return
    plan, best = greedy(problem), exact(problem)
    assert problem.fits(plan) and plan == greedy(problem)
    rounding = 1e-9 * sum(max(abs(option.cost) for option in item.options) for item in problem.items)
    assert plan.cost >= best.cost - GAP * abs(best.cost) - rounding  # exact is optimal to this tolerance


def test_greedy_is_exact_for_equal_steps_with_decreasing_gains() -> None:
    def steps(name: str, *costs: float) -> Item:
        return Item(name, tuple(Option("int", 0, 10 * n, cost) for n, cost in enumerate(costs)))

    problem = Problem((steps("a", 9, 5, 3.5), steps("b", 9, 6, 5)), budget=30)
    assert greedy(problem).choices == exact(problem).choices == (2, 1)


def test_greedy_rejects_a_limit_on_trainable_numbers() -> None:
    with pytest.raises(PlanError, match="greedy knows one limit"):
        greedy(Problem((Item("a", (Option("int4", 0, 1, 1.0),)),), 10, max_trainable=5))


def test_exact_beats_greedy_on_a_language_model() -> None:
    """Single steps cannot skip an option that costs many bytes for its gain; here greedy loses an eighth."""
    problem = language_model(210, 3.5)
    assert 1.1 * exact(problem).cost < greedy(problem).cost < 1.2 * exact(problem).cost
