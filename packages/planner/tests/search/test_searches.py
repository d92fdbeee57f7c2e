"""Properties that all four searches share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bitrank_planner.errors import Infeasible, PlanError
from bitrank_planner.problem import Item, Option, Plan, Problem
from bitrank_planner.search import SEARCHES
from hypothesis import given, settings
from hypothesis import strategies as st

CHEAP = ["random", "anneal", "nsga2"]


class RecordingEvaluate:
    """An evaluation that records its calls and raises KeyboardInterrupt after ``stop`` calls."""

    def __init__(self, evaluate, stop: int = 10**9) -> None:
        self.evaluate, self.stop, self.calls = evaluate, stop, []

    def __call__(self, plan: Plan) -> float:
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        self.calls.append(plan.choices)
        return self.evaluate(plan)


@pytest.mark.parametrize("name", SEARCHES)
def test_equal_seeds_evaluate_equal_plans(name, synthetic):
    problem, evaluate = synthetic
    one, other, third = (RecordingEvaluate(evaluate) for _ in range(3))
    first, second = SEARCHES[name](problem, one, 14, 3), SEARCHES[name](problem, other, 14, 3)
    SEARCHES[name](problem, third, 14, 4)
    assert one.calls == other.calls != third.calls
    assert replace(first, seconds=0) == replace(second, seconds=0)


@pytest.mark.parametrize("name", SEARCHES)
def test_search_evaluates_the_allowed_number_of_distinct_feasible_plans(name, synthetic):
    problem, evaluate = synthetic
    recorder = RecordingEvaluate(evaluate)
    found = SEARCHES[name](problem, recorder, 14, 0)
    assert found.evaluations == len(recorder.calls) == len(set(recorder.calls)) == 14
    assert all(problem.fits(problem.plan(choices, "")) for choices in recorder.calls)
    assert (
        found.value
        == evaluate(found.plan)
        == min(evaluate(problem.plan(choices, "")) for choices in recorder.calls)
    )


@pytest.mark.parametrize("name", SEARCHES)
def test_interrupted_search_resumes_with_the_same_plans(name, synthetic, tmp_path: Path):
    problem, evaluate = synthetic
    uninterrupted = RecordingEvaluate(evaluate)
    expected = SEARCHES[name](problem, uninterrupted, 14, 1)
    first_part, second_part = RecordingEvaluate(evaluate, stop=6), RecordingEvaluate(evaluate)
    with pytest.raises(KeyboardInterrupt):
        SEARCHES[name](problem, first_part, 14, 1, tmp_path / "journal")
    found = SEARCHES[name](problem, second_part, 14, 1, tmp_path / "journal")
    assert first_part.calls + second_part.calls == uninterrupted.calls
    assert len(second_part.calls) == 8
    assert (found.plan, found.value, found.evaluations) == (expected.plan, expected.value, 14)


@pytest.mark.parametrize("name", SEARCHES)
def test_search_ends_if_the_problem_has_fewer_plans_than_evaluations(name):
    problem = Problem(
        (
            Item("m", (Option("int2", 0, 10, 2.0), Option("int4", 0, 20, 1.0))),
            Item("n", (Option("int2", 0, 5, 1.0),)),
        ),
        25,
    )
    found = SEARCHES[name](problem, lambda plan: plan.cost, 50, 0)
    assert found.plan.precision == {"m": "int4", "n": "int2"}
    assert found.evaluations <= 2


@pytest.mark.parametrize("name", SEARCHES)
def test_plan_without_a_finite_loss_is_never_chosen(name, synthetic):
    problem, _ = synthetic
    losses = iter([float("nan"), float("inf"), float("-inf"), *[1.0] * 7])
    found = SEARCHES[name](problem, lambda plan: next(losses), 10, 0)
    assert (found.value, found.evaluations) == (1.0, 10)
    with pytest.raises(PlanError, match="none of 3 evaluated plans gave a finite loss"):
        SEARCHES[name](problem, lambda plan: float("nan"), 3, 0)


@pytest.mark.parametrize("name", SEARCHES)
def test_unsupported_problems_and_arguments_raise(name, tiny):
    with pytest.raises(PlanError, match="0 evaluations"):
        SEARCHES[name](tiny, lambda plan: 0.0, 0, 0)
    with pytest.raises(PlanError, match="use the solver 'exact'"):
        SEARCHES[name](replace(tiny, max_trainable=5), lambda plan: 0.0, 3, 0)
    with pytest.raises(Infeasible):
        SEARCHES[name](replace(tiny, budget=10), lambda plan: 0.0, 3, 0)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_no_evaluated_plan_is_above_the_budget(data):
    option = st.builds(Option, st.sampled_from(["a", "b"]), st.just(0), st.integers(0, 50), st.floats(0, 10))
    items = tuple(
        Item(f"m{i}", tuple(options))
        for i, options in enumerate(
            data.draw(st.lists(st.lists(option, min_size=1, max_size=5), min_size=1, max_size=5))
        )
    )
    smallest = Problem(items, 10**6).smallest
    problem = Problem(items, smallest + data.draw(st.integers(0, 60)))
    name, seed = data.draw(st.sampled_from(CHEAP)), data.draw(st.integers(0, 99))
    recorder = RecordingEvaluate(lambda plan: plan.cost)
    SEARCHES[name](problem, recorder, 8, seed)
    assert all(problem.fits(problem.plan(choices, "")) for choices in recorder.calls)
