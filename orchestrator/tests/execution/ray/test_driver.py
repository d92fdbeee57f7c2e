"""The driver on a cluster whose workers answer from a script: runs that another matrix has locked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from bitrank.execution.attempt import Job
from bitrank.execution.options import Execution
from bitrank.execution.ray import driver
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.tracking.run_state import State, StoredRun, code_of

LOCKED = {"ended": "locked", "message": "another process runs it", "run_id": None, "figures": {}}
FINISHED = {"ended": "finished", "message": "", "run_id": "own", "figures": {"eval/loss": 1.0}}


@dataclass
class ScriptedCluster:
    """Workers that answer at once: ``script`` has the answers to each spec, one for each submission."""

    script: dict[str, list[dict[str, Any]]]
    machines: tuple[dict[str, float], ...] = ({"CPU": 4.0, "memory": 64.0 * 2**30},)
    submitted: list[str] = field(default_factory=list)

    def start(self, order: dict[str, Any], need: dict[str, float]) -> str:
        self.submitted.append(order["spec"]["config"])
        return self.submitted[-1]

    def wait(self, handles: Sequence[str], seconds: float) -> None: ...

    def messages(self, handle: str) -> list[dict[str, Any]]:
        return [self.script[handle].pop(0)]

    def leave(self) -> None: ...


@dataclass
class Store:
    """A tracker with the runs that other processes have stored."""

    found: dict[str, StoredRun] = field(default_factory=dict)
    store: str = "http://127.0.0.1:9"
    experiment_id: str = "1"

    @property
    def client(self) -> Any:
        experiment = SimpleNamespace(artifact_location="mlflow-artifacts:/1")
        return SimpleNamespace(get_experiment=lambda _: experiment)

    def find(self, spec_id: str) -> StoredRun | None:
        return self.found.get(spec_id)


def job(config: str) -> Job:
    spec = make_spec(find_profile("smoke"), config, "toy_sentences", {"threads": 1})
    return Job(spec, None, State("new"))  # type: ignore[arg-type]


def run(
    monkeypatch: pytest.MonkeyPatch, jobs: list[Job], script: dict[str, list[dict[str, Any]]], store: Store
) -> ScriptedCluster:
    cluster = ScriptedCluster(script)
    monkeypatch.setattr(driver, "Cluster", lambda address: cluster)
    driver.run_all(jobs, store, Execution("ray"), lambda _: None)  # type: ignore[arg-type]
    return cluster


def test_locked_runs_are_tried_once_more_after_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = job("B-FP"), job("B-Q4")
    script = {"B-FP": [LOCKED, FINISHED], "B-Q4": [FINISHED]}
    cluster = run(monkeypatch, [first, second], script, Store())
    assert cluster.submitted == ["B-FP", "B-Q4", "B-FP"]
    assert (first.status, second.status) == ("finished", "finished")


def test_a_run_that_stays_locked_is_reported_and_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    one = job("B-FP")
    cluster = run(monkeypatch, [one], {"B-FP": [LOCKED, LOCKED]}, Store())
    assert cluster.submitted == ["B-FP", "B-FP"]
    assert (one.status, one.message) == ("locked", "another process runs it")


def test_a_locked_run_that_another_matrix_completes_is_complete_here(monkeypatch: pytest.MonkeyPatch) -> None:
    one = job("B-FP")
    stored = StoredRun("theirs", "FINISHED", {"code": code_of(one.spec)}, {"eval/loss": 2.0})
    run(monkeypatch, [one], {"B-FP": [LOCKED, LOCKED]}, Store({one.spec.spec_id: stored}))
    assert (one.status, one.state.run_id, one.state.figures) == ("done", "theirs", {"eval/loss": 2.0})
