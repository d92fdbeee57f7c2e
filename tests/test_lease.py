"""Leases, which give each run one writer at a time across machines, and snapshots for the next writer."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.tracking.lease import Lease, LeaseLost, RunHeldElsewhere, is_held
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.remote_checkpoints import Snapshots
from bitrank.tracking.store import open_store

SMOKE = find_profile("smoke")


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    store = str(tmp_path_factory.mktemp("store"))
    return Tracker(open_store(store), store, "smoke")


def leases(tracker: Tracker) -> list[str]:
    return [
        key for key in tracker.client.get_experiment(tracker.experiment_id).tags if key.startswith("lease.")
    ]


def test_lease_has_one_holder_at_a_time(tracker: Tracker) -> None:
    arguments = (tracker.client, tracker.experiment_id, "abc")
    with Lease(*arguments, seconds=3) as first:
        assert len(leases(tracker)) == 1
        with pytest.raises(RunHeldElsewhere), Lease(*arguments, seconds=1.5):
            pass
        with Lease(tracker.client, tracker.experiment_id, "abd", seconds=3):
            assert len(leases(tracker)) == 2
        assert leases(tracker) == [f"lease.abc.{first.holder}"]
        assert is_held(tracker.client, tracker.experiment_id, "abc", first.holder)
    assert leases(tracker) == [] and not is_held(tracker.client, tracker.experiment_id, "abc", first.holder)


def test_concurrent_acquisitions_give_one_holder(tracker: Tracker) -> None:
    tracker.client.set_experiment_tag(
        tracker.experiment_id, "lease.abc.0-0-0", "holding 7"
    )  # a lease whose holder is gone, for which all wait
    had, inside, most = [], [], []

    def come() -> None:
        try:
            with Lease(tracker.client, tracker.experiment_id, "abc", seconds=3):
                inside.append(1)
                most.append(len(inside))
                time.sleep(4)
                inside.pop()
                had.append(True)
        except RunHeldElsewhere:
            had.append(False)

    threads = [threading.Thread(target=come) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(had) == [False, False, True] and max(most) == 1
    assert leases(tracker) == []


def test_lease_of_a_dead_holder_is_taken_immediately(tracker: Tracker) -> None:
    tracker.client.set_experiment_tag(tracker.experiment_id, "lease.abc.0-0-0", "holding 7")
    with Lease(tracker.client, tracker.experiment_id, "abc", gone="0-0-0", seconds=10_000) as lease:
        assert leases(tracker) == [f"lease.abc.{lease.holder}"]


def test_lease_of_an_ended_local_process_is_taken_immediately(tracker: Tracker) -> None:
    command = (
        "from bitrank.tracking.lease import Lease; from bitrank.tracking.store import open_store; import os; "
        f"Lease(open_store({tracker.store!r}), {tracker.experiment_id!r}, 'abc').__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", command], check=False, timeout=120).returncode == 9
    assert len(leases(tracker)) == 1
    with Lease(tracker.client, tracker.experiment_id, "abc", seconds=10_000) as lease:
        assert leases(tracker) == [f"lease.abc.{lease.holder}"]


def test_lease_of_a_possibly_live_holder_is_taken_after_a_grace_period(tracker: Tracker) -> None:
    arguments = (tracker.client, tracker.experiment_id, "abc")
    with Lease(*arguments, seconds=1.5) as first:
        threading.Timer(3, first.__exit__, (None, None, None)).start()
        with Lease(*arguments, patience=60, seconds=1.5) as second:
            assert leases(tracker) == [f"lease.abc.{second.holder}"]


def test_holder_that_could_not_renew_checks_for_a_new_holder(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    with Lease(tracker.client, tracker.experiment_id, "abc", seconds=1.5) as lease:
        with monkeypatch.context() as patch:

            def unreachable(*_: object) -> None:
                raise MlflowException("the server is gone")

            patch.setattr(tracker.client, "set_experiment_tag", unreachable)
            time.sleep(1.5)
            with pytest.raises(MlflowException):
                lease.check()
            patch.undo()
            lease.check()  # there is no other holder
            patch.setattr(tracker.client, "set_experiment_tag", unreachable)
            time.sleep(1.5)
        tracker.client.set_experiment_tag(tracker.experiment_id, "lease.abc.0-0-0", "waiting 1")
        with pytest.raises(LeaseLost, match="another process took over the run"):
            for _ in range(50):
                monkeypatch.setattr(lease, "_renewed", 0.0)
                lease.check()


def test_snapshot_has_the_newest_complete_checkpoint_and_the_events_before_it(
    tracker: Tracker, tmp_path: Path
) -> None:
    run_id = tracker.open(make_spec(SMOKE, "B-FP", "toy_sentences"), None).run_id
    folder = tmp_path / "run"
    (folder / "checkpoint" / "step-00000004").mkdir(parents=True)
    (folder / "checkpoint" / "step-00000004" / "state.safetensors").write_bytes(b"four")
    (folder / "checkpoint" / "best-00000004.safetensors").write_bytes(b"best")
    (folder / "events.jsonl").write_text('{"event": "checkpoint", "step": 4}\n')
    (folder / "micro_tokens.txt").write_text("512")
    kept = Snapshots(tracker.client, run_id, folder)
    name = kept.take()
    assert name == "step-00000004"
    (
        folder / "checkpoint" / "step-00000004" / "state.safetensors"
    ).unlink()  # as if the run had deleted an old checkpoint
    kept.store(name)
    assert tracker.client.get_run(run_id).data.tags["snapshot"] == name and kept.take() is None

    (folder / "checkpoint" / "step-00000004").rename(folder / "checkpoint" / "step-00000008")
    (folder / "checkpoint" / "step-00000008" / "state.safetensors").write_bytes(b"eight")
    half = kept.take()  # the process ends before it is stored
    assert half == "step-00000008"
    for place, expected in ((tmp_path / "second", b"four"), (tmp_path / "third", b"eight")):
        place.mkdir()
        found = Snapshots(tracker.client, run_id, place).restore()
        assert (place / "checkpoint" / found / "state.safetensors").read_bytes() == expected
        assert {path.name for path in place.iterdir()} == {"checkpoint", "events.jsonl", "micro_tokens.txt"}
        kept.store(half)
    (place,) = Path(tracker.store, "artifacts").rglob("snapshots")
    assert [path.name for path in place.iterdir()] == ["step-00000008"]
    kept.drop()
    assert not list(Path(tracker.store, "artifacts").rglob("step-*"))
    assert "snapshot" not in tracker.client.get_run(run_id).data.tags
    assert Snapshots(tracker.client, run_id, tmp_path / "fourth").restore() is None


def test_concurrent_renewal_does_not_outlive_the_release(tracker: Tracker) -> None:
    """The holder releases the lease while its thread is about to renew the tag."""
    with Lease(tracker.client, tracker.experiment_id, "abc", seconds=0.6) as lease:
        renew, begun = lease._renew, threading.Event()

        def late() -> None:
            begun.set()
            time.sleep(0.3)
            renew()

        lease._renew = late  # type: ignore[method-assign]
        begun.wait(10)
    time.sleep(0.6)
    assert leases(tracker) == []
