from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from bitrank_planner.errors import PlanError
from bitrank_planner.journal import Journal
from bitrank_planner.problem import Item, Option, Problem

PROBLEM = Problem(
    (
        Item(
            "m",
            (Option("int2", 1, 10, 2.0), Option("int4", 1, 20, 1.0), Option("int4", 2, 24, 0.9)),
            shape=(4, 4),
        ),
    ),
    30,
)
PLANS = [PROBLEM.plan([choice], "test") for choice in range(3)]


def fail_if_called(plan):
    raise AssertionError("evaluated twice")


def test_journal_evaluates_a_plan_once(tmp_path: Path):
    path = tmp_path / "journal"
    journal = Journal(PROBLEM, path)
    assert [journal.evaluate(plan, lambda plan: plan.cost / 3) for plan in PLANS] == [2 / 3, 1 / 3, 0.3]
    for reopened in (journal, Journal(PROBLEM, path)):
        assert [reopened.evaluate(replace(plan, solver="other"), fail_if_called) for plan in PLANS] == [
            2 / 3,
            1 / 3,
            0.3,
        ]
        assert (reopened.count, reopened.best().value, reopened.best().plan.choices) == (3, 0.3, (2,))
        assert reopened.seconds == journal.seconds > 0
    assert len(path.read_text().splitlines()) == 4


def test_journal_without_a_path_keeps_entries_in_memory():
    journal = Journal(PROBLEM)
    assert journal.evaluate(PLANS[0], lambda plan: 1) == journal.evaluate(PLANS[0], fail_if_called) == 1.0
    assert journal.recorded(PLANS[1]) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_is_recorded_as_infinite(tmp_path: Path, value):
    path = tmp_path / "journal"
    assert Journal(PROBLEM, path).evaluate(PLANS[0], lambda plan: value) == math.inf
    assert json.loads(path.read_text().splitlines()[1])["value"] is None
    reopened = Journal(PROBLEM, path)
    assert reopened.evaluate(PLANS[0], fail_if_called) == math.inf
    with pytest.raises(PlanError, match="none of 1 evaluated plans"):
        reopened.best()
    reopened.evaluate(PLANS[1], lambda plan: 9.0)
    assert reopened.best().plan.choices == (1,)


def test_exception_of_evaluate_is_not_recorded(tmp_path: Path):
    journal = Journal(PROBLEM, tmp_path / "journal")
    with pytest.raises(AssertionError):
        journal.evaluate(PLANS[0], fail_if_called)
    assert Journal(PROBLEM, tmp_path / "journal").count == 0


@pytest.mark.parametrize("kept", range(1, 400, 7))
def test_truncated_journal_keeps_its_complete_lines(tmp_path: Path, kept):
    path = tmp_path / "journal"
    journal = Journal(PROBLEM, path)
    for plan in PLANS:
        journal.evaluate(plan, lambda plan: plan.cost)
    text = path.read_bytes()
    path.write_bytes(text[:kept])
    assert Journal(PROBLEM, path).count == max(0, text[:kept].count(b"\n") - 1)
    resumed = Journal(PROBLEM, path)
    for plan in PLANS:
        resumed.evaluate(plan, lambda plan: plan.cost)
    assert Journal(PROBLEM, path).count == 3


@pytest.mark.parametrize(
    "other",
    [
        replace(PROBLEM, budget=31),
        replace(PROBLEM, items=(replace(PROBLEM.items[0], name="n"),)),
        replace(PROBLEM, items=(replace(PROBLEM.items[0], options=PROBLEM.items[0].options[:2]),)),
    ],
)
def test_journal_of_another_problem_raises(tmp_path: Path, other):
    Journal(PROBLEM, tmp_path / "journal")
    with pytest.raises(PlanError, match="another problem"):
        Journal(other, tmp_path / "journal")


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"choices": [7], "value": 1, "seconds": 1}', '{"choices": [0], "seconds": 1}']
)
def test_damaged_line_raises_with_its_number(tmp_path: Path, line):
    path = tmp_path / "journal"
    Journal(PROBLEM, path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(PlanError, match="line 2 of"):
        Journal(PROBLEM, path)
