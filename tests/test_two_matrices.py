"""Two matrices in different order on one store: every spec is trained once and all are complete."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from bitrank.execution.attempt import Job
from bitrank.execution.claim import claim
from bitrank.execution.local import run_all
from bitrank.process.events import read_events
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.run_state import State, state_of
from bitrank.tracking.store import open_store
from filelock import FileLock
from study_tools import SMOKE, bitrank, kill_children_of, start, wait_for

STEPS = ("--set", "steps=150")
ONE = (*SMOKE, "--tasks", "toy_articles", *STEPS)


def _attempts(cwd: Path) -> dict[str, int]:
    """Number of started processes of each run, by the name of its folder."""
    return {
        path.parent.name: sum(e["event"] == "machine" for e in read_events(path))
        for path in (cwd / "runs" / "work").glob("*/events.jsonl")
    }


def _runs(cwd: Path) -> list[tuple[str, str, str]]:
    with sqlite3.connect(cwd / "runs" / "mlflow.db") as database:
        return database.execute("SELECT name, status, lifecycle_stage FROM runs ORDER BY name").fetchall()


def _together(cwd: Path, *orders: str, more: tuple[str, ...] = ()) -> list[str]:
    """Run matrices with these orders of configs concurrently; each must complete. Returns their output."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bitrank", *ONE, "--configs", order, "--jobs", "1", *more],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for order in orders
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert all("Traceback" not in text for text in outputs), outputs
    assert 0 in [process.returncode for process in processes], outputs
    return outputs


def test_every_spec_is_trained_once_in_any_order(tmp_path: Path) -> None:
    first, second = _together(tmp_path, "B-FP,B-Q4,Joint-1", "Joint-1,B-Q4,B-FP")
    assert [status for _, status, _ in _runs(tmp_path)] == ["FINISHED"] * 3, first + second
    assert list(_attempts(tmp_path).values()) == [1, 1, 1]

    _together(tmp_path, "B-FP,B-Q4,Joint-1", "Joint-1,B-Q4,B-FP", more=("--force",))
    stages = [stage for _, _, stage in _runs(tmp_path)]
    assert stages.count("active") == 3 and list(_attempts(tmp_path).values()) == [1, 1, 1]


def _job(cwd: Path, tracker: Tracker, force: bool = False) -> Job:
    spec = make_spec(PROFILES["smoke"], "B-FP", "toy_articles", {"steps": 150})
    found = tracker.find(spec.spec_id)
    state = state_of(spec, {spec.spec_id: found} if found else {})
    job = Job(spec, cwd / "runs" / "work" / spec.spec_id, state)
    job.replaces = state if force else None
    return job


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished run."""
    cwd = tmp_path_factory.mktemp("once")
    done = bitrank(*ONE, "--configs", "B-FP", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


@pytest.fixture
def copied(once: Path, tmp_path: Path) -> Path:
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def _tracker(cwd: Path) -> Tracker:
    return Tracker(open_store(str(cwd / "runs")), str(cwd / "runs"), "smoke")


def test_run_finished_by_another_process_is_not_trained(copied: Path) -> None:
    tracker = _tracker(copied)
    job = _job(copied, tracker)
    job.state = State("new")  # the state that this matrix saw earlier
    run_all([job], tracker, 1, lambda _: None)
    assert (job.status, job.state.figures["train/best_step"] >= 0) == ("done", True)
    assert list(_attempts(copied).values()) == [1]


def test_force_keeps_a_newer_run_of_another_process(copied: Path) -> None:
    tracker = _tracker(copied)
    job = _job(copied, tracker, force=True)
    job.replaces = State("done", "an older run, forgotten by the other process")
    assert not claim(job, tracker)
    assert job.status == "done" and [stage for _, _, stage in _runs(copied)] == ["active"]


def test_force_replaces_the_observed_run_and_keeps_its_lock(copied: Path) -> None:
    tracker = _tracker(copied)
    job = _job(copied, tracker, force=True)
    with FileLock(job.folder / ".lock", timeout=0):
        assert claim(job, tracker)
        assert [path.name for path in job.folder.iterdir()] == [".lock"]
    assert job.state == State("new") and [stage for _, _, stage in _runs(copied)] == ["deleted"]


@pytest.mark.parametrize(
    ("code", "force", "kept"), [("", False, True), ("", True, False), ("older", False, False)]
)
def test_files_of_a_run_deleted_from_the_store_are_kept_only_if_the_same_code_made_them(
    copied: Path, code: str, force: bool, kept: bool
) -> None:
    tracker = _tracker(copied)
    job = _job(copied, tracker, force)
    tracker.forget(str(job.state.run_id))
    job.replaces = State("new") if force else None
    if code:
        (job.folder / "code.txt").write_text(code)
    assert claim(job, tracker) and job.state == State("new")
    assert (job.folder / "result.json").exists() == kept


def test_run_held_elsewhere_is_complete_at_the_end(copied: Path) -> None:
    tracker = _tracker(copied)
    job = _job(copied, tracker)
    job.state = State("new")
    lock = FileLock(job.folder / ".lock", thread_local=False)
    lock.acquire()
    polls = []

    def release_later(_: Job | None) -> None:
        polls.append(1)
        if len(polls) == 1:
            lock.release()

    run_all([job], tracker, 1, release_later)
    assert job.status == "done"
    with FileLock(job.folder / ".lock"):
        job.state, job.status = State("new"), "locked"
        run_all([job], tracker, 1, lambda _: None)
    assert job.status == "done", "held to the end, and complete in the store all the same"


def test_list_distinguishes_running_from_interrupted_runs(tmp_path: Path) -> None:
    def state() -> str:
        listed = bitrank("list", *ONE[1:], "--configs", "B-FP", "--json", cwd=tmp_path)
        return str(json.loads(listed.stdout)[0]["state"])

    process = start(
        *SMOKE, "--tasks", "toy_articles", "--set", "steps=4000", "--configs", "B-FP", cwd=tmp_path
    )
    wait_for(tmp_path, "train")
    long = (
        "list",
        *SMOKE[1:],
        "--tasks",
        "toy_articles",
        "--set",
        "steps=4000",
        "--configs",
        "B-FP",
        "--json",
    )
    assert json.loads(bitrank(*long, cwd=tmp_path).stdout)[0]["state"] == "running"
    process.kill()
    kill_children_of(process)
    process.wait(timeout=60)
    assert json.loads(bitrank(*long, cwd=tmp_path).stdout)[0]["state"] == "interrupted"
    assert state() == "new"
