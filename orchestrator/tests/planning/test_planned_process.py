"""The planning process of a run: its files, events and failures; making the plan itself is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bitrank.planning import __main__ as process
from bitrank.planning import planned_arms
from bitrank.process.events import read_events
from bitrank.process.run_folder import REQUESTED_PLAN
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import write_spec
from bitrank_planner import PlanError

PLAN = {
    "planner": "exact",
    "precision": {"a": "int8"},
    "ranks": {"a": 2},
    "planning_seconds": {"measuring": 3.0, "choosing": 1.5},
    "planning_peak_mib": 900.0,
}


@pytest.fixture
def plan_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the planning process's work in ``tmp_path``, with a stub that makes the plan; returns the exit
    code."""

    def run(make: Callable[..., Any], **given: object) -> int:
        monkeypatch.setattr(planned_arms, "plan_for", make)
        write_spec(make_spec(PROFILES["smoke"], "Plan-Q4", "toy_sentences", given), tmp_path / "spec.json")
        return process._plan_for_run(tmp_path)

    return run


def test_plan_is_written_and_its_source_is_a_tag(plan_in, tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text("{}")  # of an earlier attempt
    assert plan_in(lambda spec, on_progress: (PLAN, False)) == 0
    assert json.loads((tmp_path / REQUESTED_PLAN).read_text()) == PLAN
    assert not (tmp_path / "failure.json").exists()
    first, last = read_events(tmp_path / "events.jsonl")
    assert first["phase"] == "planning"
    assert last["tags"]["plan_source"].startswith("exact plan in 4.5 s, from the cache")


def test_progress_is_shown_at_most_once_a_second(
    plan_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100, 200))
    monkeypatch.setattr(process.time, "monotonic", lambda: next(clock) / 4)

    def make(spec: Any, on_progress: Callable[[str], None]) -> tuple[dict[str, Any], bool]:
        for number in range(20):
            on_progress(f"layer.{number}")
        on_progress("plan 1 of 3: 0.1 nats")
        return PLAN, True

    assert plan_in(make) == 0
    phases = [event["phase"] for event in read_events(tmp_path / "events.jsonl")[1:-1]]
    assert phases[0] == "planning: measuring layer.0" and 1 < len(phases) < 12


@pytest.mark.parametrize(("limit", "noted"), [(800 * 2**20, True), (1000 * 2**20, False), (None, False)])
def test_planning_above_the_memory_limit_of_the_run_is_reported(
    plan_in, tmp_path: Path, limit: int | None, noted: bool
) -> None:
    assert plan_in(lambda spec, on_progress: (PLAN, True), memory_limit=limit) == 0
    messages = [event["message"] for event in read_events(tmp_path / "events.jsonl") if "message" in event]
    assert [message.startswith("planning took 900 MiB") for message in messages] == [True] * noted


def test_failed_planning_leaves_the_planners_sentence_and_no_plan(plan_in, tmp_path: Path) -> None:
    def fail(spec: Any, on_progress: Any) -> Any:
        raise PlanError("no plan fits into 100 bytes")

    assert plan_in(fail) == 2
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["message"] == "no plan fits into 100 bytes" and failure["code"] == 2
    assert not (tmp_path / REQUESTED_PLAN).exists()
