"""The exact solver against brute force and dynamic programming."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bitrank_planner import GAP, Infeasible, Item, Option, Plan, PlanError, Problem, exact
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made import every_plan, small_problems


def fitting(problem: Problem) -> list[Plan]:
    return [plan for plan in every_plan(problem) if problem.fits(plan)]


def is_best(plan: Plan, problem: Problem) -> bool:
    """Whether no plan that fits costs less than ``plan``, up to the gap and the rounding error of the sum."""
    best = min(other.cost for other in fitting(problem))
    rounding = 1e-12 * sum(max(abs(option.cost) for option in item.options) for item in problem.items)
    return plan.cost <= best + GAP * abs(best) + rounding


ROUND = (("int2", 2, 64.0), ("int3", 3, 16.0), ("int4", 4, 4.0), ("int8", 8, 1.0))


@st.composite
def monotone_options(draw: st.DrawFn) -> tuple[Option, ...]:
    """Two to four options of a matrix: more bytes at less cost."""
    sizes = sorted(draw(st.sets(st.integers(1, 30), min_size=2, max_size=4)))
    costs = sorted(
        draw(st.lists(st.integers(1, 1000), min_size=len(sizes), max_size=len(sizes))), reverse=True
    )
    return tuple(Option(f"int{size}", 0, size, cost / 100) for size, cost in zip(sizes, costs, strict=True))


def cheapest(problem: Problem) -> float:
    """Least cost of a plan that fits, by dynamic programming over bytes."""
    best_B = np.zeros(problem.available + 1)
    for item in problem.items:
        pairs = [(option.nbytes, option.cost) for option in item.options]
        shifted = [
            np.concatenate(
                [np.full(min(size, len(best_B)), np.inf), best_B[: max(0, len(best_B) - size)] + cost]
            )
            for size, cost in pairs
        ]
        best_B = np.minimum.reduce(shifted)
    return float(best_B.min())


def agrees_with_brute_force(problem: Problem) -> bool:
    """Whether ``exact`` gives the result of enumerating every plan.

    The result is the best plan, the smallest budget under the same limit on trainable numbers, or an error
    that this limit cannot be met.
    """
    limit = problem.max_trainable
    smallest = min(
        (plan.nbytes for plan in every_plan(problem) if limit is None or plan.trainable <= limit),
        default=None,
    )
    if smallest is None:
        with pytest.raises(PlanError, match=f"at most {limit:,} trainable numbers are allowed"):
            exact(problem)
        return True
    if smallest is None or smallest > problem.budget:
        with pytest.raises(Infeasible) as error:
            exact(problem)
        return error.value.smallest == smallest
    plan = exact(problem)
    return problem.fits(plan) and plan == problem.plan(plan.choices, "exact") and is_best(plan, problem)


@settings(max_examples=300, deadline=None)
@given(small_problems())
def test_exact_equals_brute_force(problem):
    assert agrees_with_brute_force(problem)


@settings(max_examples=300, deadline=None)
@given(small_problems(limited=True))
def test_exact_equals_brute_force_with_a_limit_on_trainable_numbers(problem):
    assert agrees_with_brute_force(problem)


@settings(max_examples=150, deadline=None)
@given(st.booleans().flatmap(lambda limited: small_problems(limited=limited)), st.data())
def test_exact_equals_brute_force_with_pinned_choices(problem, data):
    pins = {}
    for item in data.draw(st.lists(st.sampled_from(problem.items), unique_by=lambda item: item.name)):
        option = data.draw(st.sampled_from(item.options))
        pins[item.name] = data.draw(
            st.sampled_from([(option.format, option.rank), (option.format, None), (None, option.rank)])
        )
    pinned = problem.pinned(pins)
    assert agrees_with_brute_force(pinned)
    if fitting(pinned):
        plan = exact(pinned)
        assert all(plan.precision[name] == fmt for name, (fmt, _) in pins.items() if fmt is not None)
        assert all(plan.ranks.get(name, 0) == rank for name, (_, rank) in pins.items() if rank is not None)


@settings(max_examples=150, deadline=None)
@given(st.booleans().flatmap(lambda limited: small_problems(limited=limited)))
def test_smallest_budget_in_the_error_is_feasible_and_minimal(problem):
    least_trained = sum(min(option.trainable for option in item.options) for item in problem.items)
    assume(problem.max_trainable is None or least_trained <= problem.max_trainable)
    with pytest.raises(Infeasible) as error:
        exact(replace(problem, budget=problem.smallest - 1))
    smallest = error.value.smallest
    assert exact(replace(problem, budget=smallest)).nbytes == smallest
    with pytest.raises(Infeasible) as error:
        exact(replace(problem, budget=smallest - 1))
    assert error.value.smallest == smallest


def test_below_every_size_the_error_still_keeps_the_limit_on_trainable_numbers() -> None:
    """The smallest option, of 5 bytes, trains 9 numbers; under a limit of 3 the smallest takes 8."""
    options = (Option("int2", 4, 5, 2.0, 9), Option("int4", 1, 8, 1.0, 3))
    problem = Problem((Item("a", options),), 4, max_trainable=3)
    with pytest.raises(Infeasible, match=r"the smallest takes 8\. Give 8 or more, or offer smaller") as error:
        exact(problem)
    assert error.value.smallest == 8
    with pytest.raises(Infeasible, match=r"Give 8 or more, or allow more trainable numbers"):
        exact(replace(problem, budget=7))


def test_below_every_size_a_limit_that_no_plan_meets_is_the_error() -> None:
    item = Item("a", (Option("int2", 4, 5, 2.0, 9), Option("int4", 1, 8, 1.0, 3)))
    with pytest.raises(PlanError, match="at most 2 trainable numbers are allowed, every plan has 3") as error:
        exact(Problem((item,), 4, max_trainable=2))
    assert not isinstance(error.value, Infeasible)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(monotone_options(), st.integers(1, 40)), min_size=1, max_size=3), st.floats(0, 1))
def test_exact_with_equal_matrices_equals_dynamic_programming(templates, share):
    """A model planned with a prior has equal matrices; permutations of them must not be searched."""
    items = tuple(
        Item(f"m{index}.{copy}", template)
        for index, (template, count) in enumerate(templates)
        for copy in range(count)
    )
    low, high = (sum(pick(option.nbytes for option in item.options) for item in items) for pick in (min, max))
    problem = Problem(items, low + int(share * (high - low)))
    plan = exact(problem)
    best = cheapest(problem)
    assert problem.fits(plan) and best * (1 - 1e-9) <= plan.cost <= best * (1 + GAP) + 1e-9
    assert exact(problem) == plan


def test_exact_ends_on_a_hundred_equal_blocks_at_any_budget():
    """Costs are round numbers, so many exchanges gain nothing; exchanges and branching must still end."""
    four = [
        tuple(Option(f, r, w * b + 2 * r, c / w / (1 + r), r) for f, b, c in ROUND for r in (2, 4, 8))
        for w in (64, 64, 256, 512)
    ]
    items = tuple(
        Item(f"m{block}.{part}", template, layer=block)
        for block in range(100)
        for part, template in enumerate(four)
    )
    least = Problem(items, 10**9).smallest
    for budget in (least + 997, 2 * least, 3 * least + 1):
        problem = Problem(items, budget)
        plan = exact(problem)
        assert problem.fits(plan) and plan.cost <= cheapest(problem) * (1 + GAP)
