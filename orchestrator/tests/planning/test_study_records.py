"""Records of a study keep the arms of earlier commands."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bitrank.planning.planner_studies import find_study
from bitrank.planning.study_records import record_planning, record_rates, without_rate


def row(config: str, **values: Any) -> dict[str, Any]:
    return {"config": config, "task": "toy", **values}


def absent(arm: str, budget: str) -> dict[str, str]:
    return {"arm": arm, "budget": budget, "task": "toy", "reason": "no plan"}


def test_arms_of_an_earlier_command_stay_and_those_of_the_present_one_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "planning.json"
    plans = [row("exact-B-Q4", budget=9), row("greedy-B-Q4", budget=9)]
    record_planning(path, ["exact-B-Q4"], plans, [absent("greedy", "3bits"), absent("exact", "2bits")])
    later = [row("greedy-3bits", budget=5), row("greedy-B-Q4", budget=8)]
    record_planning(path, ["exact-3bits"], later, [absent("exact", "2bits")])
    assert json.loads(path.read_text()) == {
        "references": ["exact-B-Q4", "exact-3bits"],
        "plans": [row("exact-B-Q4", budget=9), row("greedy-B-Q4", budget=8), row("greedy-3bits", budget=5)],
        "left_out": [absent("exact", "2bits")],
    }


def test_rates_of_an_earlier_command_stay(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    record_rates(path, [row("exact", rate=1.0), row("greedy", rate=1.0)])
    record_rates(path, [row("greedy", rate=3.0)])
    assert json.loads(path.read_text()) == [row("exact", rate=1.0), row("greedy", rate=3.0)]


@pytest.mark.parametrize("text", ["", "{", "3"])
def test_a_damaged_record_is_replaced(tmp_path: Path, text: str) -> None:
    for name, record in (("planning.json", dict), ("rates.json", list)):
        (tmp_path / name).write_text(text)
        if record is dict:
            record_planning(tmp_path / name, [], [row("exact")], [])
        else:
            record_rates(tmp_path / name, [row("exact")])
        assert "exact" in (tmp_path / name).read_text()


def test_arms_without_a_learning_rate_are_left_out_under_their_budget() -> None:
    study = replace(find_study("systems", quick=True), arms=("exact", "B-Q4"), budgets=("=B-Q4", "3bits"))
    reasons = {("exact-B-Q4", "toy"): "diverged", ("B-Q4-3bits", "toy"): "failed", ("B-FP", "toy"): "failed"}
    rows = without_rate(reasons, study)
    assert [(row["arm"], row["budget"], row["reason"]) for row in rows] == [
        ("exact", "=B-Q4", "diverged"),
        ("B-Q4", "3bits", "failed"),
        ("B-FP", "", "failed"),
    ]


def test_arm_at_its_own_bytes_without_a_rate_is_left_out_until_it_has_one(tmp_path: Path) -> None:
    path = tmp_path / "planning.json"
    record_planning(path, [], [], [absent("B-FP", "")])
    assert json.loads(path.read_text())["left_out"] == [absent("B-FP", "")]
    record_planning(path, [], [row("B-FP")], [])
    assert json.loads(path.read_text())["left_out"] == []


def test_commands_that_end_together_both_add_their_arms(tmp_path: Path) -> None:
    path = tmp_path / "planning.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: record_planning(path, [], [row(f"arm-{number}")], []), range(24)))
    assert len(json.loads(path.read_text())["plans"]) == 24
