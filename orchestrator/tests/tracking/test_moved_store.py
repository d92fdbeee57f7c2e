"""A store that was moved or copied: files of its runs are written beside its database."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bitrank.process.run_folder import seal
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.base import open_tracking
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.store import open_store
from mlflow.tracking._tracking_service import utils


def spec_of(seed: int) -> RunSpec:
    return make_spec(PROFILES["smoke"], "B-FP", "toy_sentences", {"seed": seed})


def tracker_of(store: Path) -> Tracker:
    utils._artifact_repos_cache.clear()  # MLflow's places by run, which another process does not have
    tracker = open_tracking(str(store), "smoke", store / "work")
    assert isinstance(tracker, Tracker)
    return tracker


def write(store: Path, seed: int, status: str = "FINISHED", run_id: str | None = None) -> str:
    """Write one run of ``store``; returns its id."""
    files = store.parent / f"files-{seed}"
    files.mkdir(exist_ok=True)
    seal(files, {"eval/acc": 0.5})
    log = tracker_of(store).open(spec_of(seed), run_id)
    log.close(files, status, {})
    return log.run_id


def artifacts(store: Path) -> set[str]:
    """Runs with files in ``store``."""
    return {path.parent.parent.name for path in store.glob("artifacts/bitrank-smoke/*/artifacts/result.json")}


def places(store: Path) -> dict[str, str]:
    """{run: folder of its files}, as MLflow knows it."""
    client = open_store(str(store))
    experiment = client.get_experiment_by_name("bitrank-smoke")
    assert experiment.artifact_location == (store / "artifacts" / "bitrank-smoke").as_uri()
    return {run.info.run_id: run.info.artifact_uri for run in client.search_runs([experiment.experiment_id])}


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, str, str]:
    """A store with a finished and an interrupted run, in a path that a URI quotes."""
    store = tmp_path / "old #1" / "runs"
    store.parent.mkdir()
    return store, write(store, 0), write(store, 1, "KILLED")


def test_files_of_a_moved_store_are_written_beside_its_database(old: tuple[Path, str, str]) -> None:
    store, finished, interrupted = old
    new = store.parent.parent / "new" / "runs"
    shutil.move(store.parent, new.parent)
    ids = {finished, interrupted, write(new, 2), write(new, 1, run_id=interrupted)}
    assert len(ids) == 3 and artifacts(new) == ids and not store.parent.exists()
    assert places(new) == {
        run: (new / "artifacts" / "bitrank-smoke" / run / "artifacts").as_uri() for run in ids
    }


def test_a_copy_writes_nothing_into_the_store_that_it_was_made_of(old: tuple[Path, str, str]) -> None:
    store, finished, interrupted = old
    copy = store.parent / "copy"
    shutil.copytree(store, copy)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    write(copy, 1, run_id=interrupted)
    ids = {finished, interrupted, write(copy, 2)}
    assert artifacts(copy) == ids and artifacts(store) == {finished, interrupted}
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    assert write(store, 3) in artifacts(store) and artifacts(copy) == ids


def test_finished_runs_whose_files_stayed_keep_their_place(old: tuple[Path, str, str]) -> None:
    store, finished, interrupted = old
    bare = store.parent / "bare"
    bare.mkdir()
    for path in store.glob("mlflow.db*"):
        shutil.copy(path, bare)
    new = write(bare, 2)
    assert artifacts(bare) == {new}
    found = places(bare)
    assert found[finished] == (store / "artifacts" / "bitrank-smoke" / finished / "artifacts").as_uri()
    assert found[interrupted].startswith(bare.as_uri())


def test_a_command_that_reads_changes_no_place(old: tuple[Path, str, str]) -> None:
    store = old[0]
    copy = store.parent / "copy"
    shutil.copytree(store, copy)
    client = open_store(str(copy))
    location = client.get_experiment_by_name("bitrank-smoke").artifact_location
    assert location == (store / "artifacts" / "bitrank-smoke").as_uri()
