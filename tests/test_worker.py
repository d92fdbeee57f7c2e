"""What a cluster's worker does for one run, without a cluster: stop it anywhere, and another goes on from its last checkpoint."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bitrank.lease import Elsewhere, Lease, LeaseLost
from bitrank.profiles import find_profile
from bitrank.snapshots import Snapshots
from bitrank.specs import RunSpec, make_spec
from bitrank.store import open_store
from bitrank.tracking import Tracker
from bitrank.worker import order_for, work
from study_tools import bitrank, numbers, store_runs

SMOKE = find_profile("smoke")
STEPS = 40


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A worker goes where its run's files are, and says how many threads a run has: both are put back."""
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"):
        monkeypatch.setenv(name, "1")
    return tmp_path


def order_of(spec: RunSpec, here: Path) -> dict[str, Any]:
    return order_for(spec, str(here / "runs"), cpus=1)


def tracker_of(here: Path) -> Tracker:
    return Tracker(open_store(str(here / "runs")), str(here / "runs"), "smoke")


def leases(tracker: Tracker) -> list[str]:
    return [key for key in tracker.client.get_experiment(tracker.experiment_id).tags if key.startswith("lease.")]


def test_a_run_that_is_dropped_is_continued_from_its_last_snapshot(here: Path) -> None:
    straight = here / "straight"
    straight.mkdir()
    done = bitrank("run", "--profile", "smoke", "--config", "Joint-1", "--task", "toy_articles", "--max-steps", str(STEPS), cwd=straight)
    assert done.returncode == 0, done.stdout + done.stderr
    (expected,) = store_runs(straight)

    spec = make_spec(SMOKE, "Joint-1", "toy_articles", {"steps": STEPS})
    tracker = tracker_of(here)
    first = work(order_of(spec, here))
    told = next(first)
    while "snapshot" not in (run := tracker.find(spec.spec_id)).tags:
        next(first)
    assert told["run_id"] == run.run_id and len(leases(tracker)) == 1
    first.close()
    cut = tracker.find(spec.spec_id)
    assert cut.status == "KILLED" and leases(tracker) == []

    told = list(work(order_of(spec, here)))
    assert told[0]["run_id"] == run.run_id
    assert told[-1]["ended"] == "finished", told[-1]
    again = [event["step"] for message in told for event in message.get("events", []) if event["event"] == "checkpoint"]
    assert again == sorted(set(again)), "a checkpoint was made twice: the run began anew"
    (run,) = store_runs(here)
    assert run["status"] == "FINISHED" and run["tags"]["resumed_from"] == cut.tags["snapshot"] and "snapshot" not in run["tags"]
    assert [point[:2] for point in run["points"]] == [point[:2] for point in expected["points"]]
    assert numbers(run) == numbers(expected)
    assert told[-1]["figures"]["eval/loss"] == {key: value for key, step, value in run["points"] if step == 0}["eval/loss"]
    assert not list((here / "runs" / "artifacts").rglob("snapshots")) and leases(tracker) == []

    (end,) = work(order_of(spec, here))  # whose driver heard nothing of its end
    assert end["ended"] == "finished" and end["figures"]["eval/loss"] == told[-1]["figures"]["eval/loss"]


def test_a_run_that_fails_by_itself_says_why(here: Path) -> None:
    told = list(work(order_of(make_spec(SMOKE, "B-Ada", "toy_articles", {"steps": 2}), here)))
    assert told[-1]["ended"] == "bad input" and "too few for AdaLoRA" in told[-1]["message"]
    (run,) = store_runs(here)
    assert run["status"] == "FAILED" and "too few for AdaLoRA" in run["tags"]["failure"]


def test_other_code_is_refused(here: Path) -> None:
    order = order_of(make_spec(SMOKE, "B-FP", "toy_sentences"), here)
    for key, value in (("version", "9.9"), ("shared_code", "0" * 64)):
        (end,) = work({**order, key: value})
        assert end["ended"] == "bad input" and "install the same checkout on every machine" in end["message"]
    assert not (here / "runs").exists()


def test_files_of_the_users_own_must_be_there_and_the_same(here: Path) -> None:
    plan = here / "plans" / "mine.json"
    plan.parent.mkdir()
    plan.write_text('{"precision": {}, "ranks": {"bert.encoder.layer.0.attention.self.query": 4}}')
    order = order_of(make_spec(SMOKE, "", "toy_sentences", {"plan": "plans/mine.json"}), here)
    assert order["files"] == ["plans/mine.json"]
    plan.write_text('{"precision": {}, "ranks": {"bert.encoder.layer.0.attention.self.query": 5}}')
    (end,) = work(order)
    assert end["ended"] == "bad input" and "plans/mine.json is another than on the driver" in end["message"]
    plan.unlink()
    (end,) = work(order)
    assert end["ended"] == "bad input" and f"{plan} is not there; files and folders that a run reads must lie" in end["message"]


def test_one_at_a_time_has_the_lease(here: Path) -> None:
    tracker = tracker_of(here)
    words = (tracker.client, tracker.experiment_id, "abc")
    with Lease(*words, seconds=3) as first:
        assert len(leases(tracker)) == 1
        with pytest.raises(Elsewhere), Lease(*words, seconds=1.5):
            pass
        with Lease(tracker.client, tracker.experiment_id, "abd", seconds=3):
            assert len(leases(tracker)) == 2
        assert leases(tracker) == [f"lease.abc.{first.holder}"]
    assert leases(tracker) == []


def test_of_several_who_come_at_once_one_has_the_lease(here: Path) -> None:
    tracker = tracker_of(here)
    tracker.client.set_experiment_tag(tracker.experiment_id, "lease.abc.0-0-0", "holding 7")  # its holder is gone: all wait for it
    had, inside, most = [], [], []

    def come() -> None:
        try:
            with Lease(tracker.client, tracker.experiment_id, "abc", seconds=3):
                inside.append(1)
                most.append(len(inside))
                time.sleep(4)
                inside.pop()
                had.append(True)
        except Elsewhere:
            had.append(False)

    threads = [threading.Thread(target=come) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(had) == [False, False, True] and max(most) == 1
    assert leases(tracker) == []


def test_a_holder_known_to_be_dead_is_not_waited_for(here: Path) -> None:
    tracker = tracker_of(here)
    tracker.client.set_experiment_tag(tracker.experiment_id, "lease.abc.0-0-0", "holding 7")
    with Lease(tracker.client, tracker.experiment_id, "abc", gone="0-0-0", seconds=10_000) as lease:
        assert leases(tracker) == [f"lease.abc.{lease.holder}"]


def test_a_holder_that_was_a_process_of_this_machine_is_not_waited_for(here: Path) -> None:
    tracker = tracker_of(here)
    command = f"from bitrank.lease import Lease; from bitrank.store import open_store; import os; " \
              f"Lease(open_store({str(here / 'runs')!r}), {tracker.experiment_id!r}, 'abc').__enter__(); os._exit(9)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", command], check=False, timeout=120).returncode == 9
    assert len(leases(tracker)) == 1
    with Lease(tracker.client, tracker.experiment_id, "abc", seconds=10_000) as lease:
        assert leases(tracker) == [f"lease.abc.{lease.holder}"]


def test_a_holder_that_may_live_is_given_time_to_let_go(here: Path) -> None:
    tracker = tracker_of(here)
    words = (tracker.client, tracker.experiment_id, "abc")
    with Lease(*words, seconds=1.5) as first:
        threading.Timer(3, first.__exit__, (None, None, None)).start()
        with Lease(*words, patience=60, seconds=1.5) as second:
            assert leases(tracker) == [f"lease.abc.{second.holder}"]


def test_a_holder_that_could_not_renew_it_looks_whether_another_has_come(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    tracker = tracker_of(here)
    with Lease(tracker.client, tracker.experiment_id, "abc", seconds=1.5) as lease:
        with monkeypatch.context() as patch:

            def unreachable(*_: object) -> None:
                raise MlflowException("the server is gone")

            patch.setattr(tracker.client, "set_experiment_tag", unreachable)
            time.sleep(1.5)
            with pytest.raises(MlflowException):
                lease.check()
            patch.undo()
            lease.check()  # nobody came
            patch.setattr(tracker.client, "set_experiment_tag", unreachable)
            time.sleep(1.5)
        tracker.client.set_experiment_tag(tracker.experiment_id, "lease.abc.0-0-0", "waiting 1")
        with pytest.raises(LeaseLost, match="another took the run over"):
            for _ in range(50):
                monkeypatch.setattr(lease, "_renewed", 0.0)
                lease.check()


def test_snapshots_hold_the_newest_whole_checkpoint_and_the_events_before_it(here: Path) -> None:
    tracker = tracker_of(here)
    run_id = tracker.open(make_spec(SMOKE, "B-FP", "toy_sentences"), None).run_id
    folder = here / "run"
    (folder / "checkpoint" / "step-00000004").mkdir(parents=True)
    (folder / "checkpoint" / "step-00000004" / "state.safetensors").write_bytes(b"four")
    (folder / "checkpoint" / "best.safetensors").write_bytes(b"best")
    (folder / "events.jsonl").write_text('{"event": "checkpoint", "step": 4}\n')
    (folder / "micro_tokens.txt").write_text("512")
    kept = Snapshots(tracker.client, run_id, folder)
    name = kept.take()
    assert name == "step-00000004"
    (folder / "checkpoint" / "step-00000004" / "state.safetensors").unlink()  # the run goes on
    kept.store(name)
    assert tracker.client.get_run(run_id).data.tags["snapshot"] == name and kept.take() is None

    (folder / "checkpoint" / "step-00000004").rename(folder / "checkpoint" / "step-00000008")
    (folder / "checkpoint" / "step-00000008" / "state.safetensors").write_bytes(b"eight")
    half = kept.take()  # and is lost before it is stored
    assert half == "step-00000008"
    for place, expected in ((here / "second", b"four"), (here / "third", b"eight")):
        place.mkdir()
        found = Snapshots(tracker.client, run_id, place).restore()
        assert (place / "checkpoint" / found / "state.safetensors").read_bytes() == expected
        assert {path.name for path in place.iterdir()} == {"checkpoint", "events.jsonl", "micro_tokens.txt"}
        kept.store(half)
    assert [path.name for path in (here / "runs" / "artifacts").rglob("step-*")] == ["step-00000008"]
    kept.drop()
    assert not list((here / "runs" / "artifacts").rglob("step-*"))
    assert "snapshot" not in tracker.client.get_run(run_id).data.tags
    assert Snapshots(tracker.client, run_id, here / "fourth").restore() is None
