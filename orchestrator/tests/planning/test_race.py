"""A race: distinct candidates that fit, and a winner by successive halving with all its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bitrank.planning.race import candidates, run_race
from bitrank.spec.races import RACES
from bitrank_planner import Infeasible, Item, Option, Plan, Problem

(NAME,) = RACES
FORMATS = {"int2": 2, "int4": 4, "int8": 8}


def problem(scale: float, budget: int = 140) -> Problem:
    """Ten matrices; ``scale`` is the weight of later ones in the costs, so it changes the best plan."""
    items = []
    for number in range(10):
        options = tuple(
            Option(fmt, rank, bits + rank, (1 + scale * number) / bits + 1.0 / (1 + rank))
            for fmt, bits in FORMATS.items()
            for rank in (4, 8, 16)
        )
        items.append(Item(f"m{number}", options, layer=number, shape=(64, 64)))
    return Problem(tuple(items), budget)


def test_candidates_are_distinct_plans_that_fit_in_the_costs_of_the_first_problem() -> None:
    problems = [problem(1.0), problem(0.0), problem(-0.09)]
    plans = candidates(NAME, problems, seconds=10.0)
    assert 3 <= len(plans) <= 6 and len({plan.choices for plan in plans}) == len(plans)
    assert all(problems[0].fits(plan) for plan in plans)
    assert any(min(plan.ranks.values()) == 4 for plan in plans) and any(
        min(plan.ranks.values()) >= 8 for plan in plans
    )
    for plan in plans:
        assert plan.cost == problems[0].find(plan.precision, plan.ranks, "x").cost and plan.solver == NAME


def test_smallest_rank_that_does_not_fit_gives_no_candidate() -> None:
    plans = candidates(NAME, [problem(1.0, budget=70)], seconds=10.0)
    assert len(plans) == 1 and set(plans[0].ranks.values()) == {4}, "rank 8 would take at least 100 bytes"
    with pytest.raises(Infeasible, match="too small"):
        candidates(NAME, [problem(1.0, budget=10)], seconds=10.0)


class Trained:
    """Losses by length: the plan at place ``winner`` is worst after one round and best after more steps."""

    def __init__(self, plans: list[Plan], late: int) -> None:
        self.seen: list[tuple[int, tuple[int, ...]]] = []
        self._place = {plan.choices: place for place, plan in enumerate(plans)}
        self._late = late

    def __call__(self, steps: int) -> Callable[[Plan], float]:
        def loss(plan: Plan) -> float:
            self.seen.append((steps, plan.choices))
            place = self._place[plan.choices]
            return -1.0 if place == self._late and steps > 10 else float(place)

        return loss


def six() -> list[Plan]:
    base = problem(1.0)
    return [base.plan([choice] * 10, NAME) for choice in range(6)]


def test_better_half_trains_twice_as_long_and_all_trainings_count(tmp_path: Path) -> None:
    plans, base = six(), replace(problem(1.0), budget=10**6)
    trained = Trained(plans, late=2)
    found = run_race(plans, base, trained, 10, tmp_path / "race.jsonl")
    assert found.plan == plans[2] and found.value == -1.0, (
        "third after the first round, best of the next ones"
    )
    lengths = [steps for steps, _ in trained.seen]
    assert [lengths.count(steps) for steps in (10, 20, 40)] == [6, 3, 2] and found.evaluations == 11
    again = Trained(plans, late=2)
    resumed = run_race(plans, base, again, 10, tmp_path / "race.jsonl")
    assert not again.seen and resumed == found, "read from the journals, with the same seconds"
    lost = run_race(plans, base, Trained(plans, late=5), 10, tmp_path / "other.jsonl")
    assert lost.plan == plans[0], "the sixth was dropped before it could win"


def test_single_candidate_is_not_trained(tmp_path: Path) -> None:
    trained = Trained(six(), late=0)
    found = run_race(six()[:1], problem(1.0), trained, 10, tmp_path / "race.jsonl")
    assert found.plan == six()[0] and not trained.seen and found.evaluations == 0
