"""A cluster worker's part of one run, without a cluster: another worker resumes from its last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bitrank.execution.ray.worker import order_for, work
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.store import open_store
from study_tools import bitrank, numbers, store_runs

SMOKE = find_profile("smoke")
STEPS = 40


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Restores the working folder and the number of threads, which a worker changes."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "OMP_NUM_THREADS",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
    ):
        monkeypatch.setenv(name, "1")
    return tmp_path


def order_of(spec: RunSpec, here: Path) -> dict[str, Any]:
    return order_for(spec, str(here / "runs"), cpus=1)


def tracker_of(here: Path) -> Tracker:
    return Tracker(open_store(str(here / "runs")), str(here / "runs"), "smoke")


def leases(tracker: Tracker) -> list[str]:
    return [
        key for key in tracker.client.get_experiment(tracker.experiment_id).tags if key.startswith("lease.")
    ]


def test_worker_plans_before_the_run_of_a_planned_arm(here: Path) -> None:
    spec = make_spec(SMOKE, "Plan-Q4", "toy_sentences")
    messages = list(work(order_of(spec, here)))
    assert messages[-1]["ended"] == "finished", messages[-1]
    assert messages[-1]["figures"]["time/plan_s"] > 0
    phases = [event["phase"] for m in messages for event in m.get("events", []) if event["event"] == "phase"]
    assert phases[0] == "planning" and phases[-1] == "testing"


def test_interrupted_run_continues_from_its_last_snapshot(here: Path) -> None:
    straight = here / "straight"
    straight.mkdir()
    done = bitrank(
        "run",
        "--profile",
        "smoke",
        "--config",
        "Joint-1",
        "--task",
        "toy_articles",
        "--max-steps",
        str(STEPS),
        cwd=straight,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (expected,) = store_runs(straight)

    spec = make_spec(SMOKE, "Joint-1", "toy_articles", {"steps": STEPS})
    tracker = tracker_of(here)
    first = work(order_of(spec, here))
    messages = next(first)
    while "snapshot" not in (run := tracker.find(spec.spec_id)).tags:
        next(first)
    assert messages["run_id"] == run.run_id and len(leases(tracker)) == 1
    first.close()
    cut = tracker.find(spec.spec_id)
    assert cut.status == "KILLED" and leases(tracker) == []

    messages = list(work(order_of(spec, here)))
    assert messages[0]["run_id"] == run.run_id
    assert messages[-1]["ended"] == "finished", messages[-1]
    again = [
        event["step"]
        for message in messages
        for event in message.get("events", [])
        if event["event"] == "checkpoint"
    ]
    assert again == sorted(set(again)), "a checkpoint was made twice: the run started from the beginning"
    (run,) = store_runs(here)
    assert (
        run["status"] == "FINISHED"
        and run["tags"]["resumed_from"] == cut.tags["snapshot"]
        and "snapshot" not in run["tags"]
    )
    assert [point[:2] for point in run["points"]] == [point[:2] for point in expected["points"]]
    assert numbers(run) == numbers(expected)
    assert (
        messages[-1]["figures"]["eval/loss"]
        == {key: value for key, step, value in run["points"] if step == 0}["eval/loss"]
    )
    assert not list((here / "runs" / "artifacts").rglob("snapshots")) and leases(tracker) == []

    (end,) = work(order_of(spec, here))  # as if the driver had not received the end of the run
    assert end["ended"] == "finished" and end["figures"]["eval/loss"] == messages[-1]["figures"]["eval/loss"]


def test_failed_run_reports_the_reason(here: Path) -> None:
    messages = list(work(order_of(make_spec(SMOKE, "B-Ada", "toy_articles", {"steps": 2}), here)))
    assert messages[-1]["ended"] == "bad input" and "too few for AdaLoRA" in messages[-1]["message"]
    (run,) = store_runs(here)
    assert run["status"] == "FAILED" and "too few for AdaLoRA" in run["tags"]["failure"]


def test_diverged_run_in_the_store_is_not_continued(here: Path) -> None:
    spec = make_spec(SMOKE, "B-FP", "toy_sentences")
    log = tracker_of(here).open(spec, None)
    log.close(here, "FAILED", {"finding": "diverged at step 2: the loss is nan"})
    (end,) = work(order_of(spec, here))
    assert end["ended"] == "diverged" and "diverged at step 2" in end["message"]
    (run,) = store_runs(here)
    assert run["status"] == "FAILED" and end["run_id"] == log.run_id


def test_order_of_other_code_is_rejected(here: Path) -> None:
    order = order_of(make_spec(SMOKE, "B-FP", "toy_sentences"), here)
    for key, value in (("version", "9.9"), ("shared_code", "0" * 64)):
        (end,) = work({**order, key: value})
        assert end["ended"] == "bad input" and "install the same checkout on every machine" in end["message"]
    assert not (here / "runs").exists()


def test_user_files_must_exist_and_be_equal(here: Path) -> None:
    plan = here / "plans" / "mine.json"
    plan.parent.mkdir()
    plan.write_text('{"precision": {}, "ranks": {"bert.encoder.layer.0.attention.self.query": 4}}')
    order = order_of(make_spec(SMOKE, "", "toy_sentences", {"plan": "plans/mine.json"}), here)
    assert order["files"] == [str(plan)]  # the same path on every machine
    plan.write_text('{"precision": {}, "ranks": {"bert.encoder.layer.0.attention.self.query": 5}}')
    (end,) = work(order)
    assert end["ended"] == "bad input" and "plans/mine.json differs from the driver's" in end["message"]
    plan.unlink()
    (end,) = work(order)
    assert (
        end["ended"] == "bad input"
        and f"{plan} does not exist; files and folders that a run reads must have the same path"
        in end["message"]
    )
