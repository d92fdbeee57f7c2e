"""Greedy always fits and never beats exact by more than exact's gap; where steps are of one size it is exact."""

from __future__ import annotations

import pytest
from bitrank_planner import GAP, Infeasible, Item, Option, PlanError, Problem, exact, greedy
from hypothesis import given, settings
from made import language_model, small_problems


@settings(max_examples=200, deadline=None)
@given(small_problems())
def test_fits_and_never_beats_exact(problem: Problem) -> None:
    if problem.smallest > problem.budget:
        with pytest.raises(Infeasible) as caught:
            greedy(problem)
        assert caught.value.smallest == problem.smallest
        return
    plan, best = greedy(problem), exact(problem)
    assert problem.fits(plan) and plan == greedy(problem)
    rounding = 1e-9 * sum(max(abs(option.cost) for option in item.options) for item in problem.items)
    assert plan.cost >= best.cost - GAP * abs(best.cost) - rounding  # exact itself is so near the best


def test_steps_of_one_size_and_falling_gains_are_taken_best_first() -> None:
    def steps(name: str, *costs: float) -> Item:
        return Item(name, tuple(Option("int", 0, 10 * n, cost) for n, cost in enumerate(costs)))

    problem = Problem((steps("a", 9, 5, 3.5), steps("b", 9, 6, 5)), budget=30)
    assert greedy(problem).choices == exact(problem).choices == (2, 1)


def test_a_limit_on_trainable_numbers_is_not_for_greedy() -> None:
    with pytest.raises(PlanError, match="greedy knows one limit"):
        greedy(Problem((Item("a", (Option("int4", 0, 1, 1.0),)),), 10, max_trainable=5))


def test_exact_is_worth_having_on_a_model_of_many_matrices() -> None:
    """Single steps cannot cross an option that is dear for its bytes: here they lose an eighth."""
    problem = language_model(210, 3.5)
    assert 1.1 * exact(problem).cost < greedy(problem).cost < 1.2 * exact(problem).cost
