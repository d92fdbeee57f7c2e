"""--wandb: W&B's offline file equals MLflow's store, also after kills; failures of W&B lose no data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bitrank.process.run_folder import seal
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.tracking.wandb_tracker import WandbTracker
from study_tools import SMOKE, bitrank, kill_children_of, start, store_runs, wait_for
from wandb_server import Server, serving

wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
KEY = "k3y" * 14  # the length of a W&B API key


@dataclass
class Recorded:
    """One W&B file: the run's record, its points in order, and its exit code (None if it has not ended)."""

    run: Any
    points: list[tuple[str, int, float]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def recorded(path: Path) -> Recorded:
    """Content of W&B's file at ``path``, read with W&B's own reader."""
    found = Recorded(None)
    for record in _records(path):
        match record.WhichOneof("record_type"):
            case "run":
                found.run, found.config = record.run, _values(record.run.config.update)
            case "config":
                found.config |= _values(record.config.update)
            case "summary":
                found.summary |= _values(record.summary.update)
            case "history":
                row = _values(record.history.item)
                found.numbers.append(row["_step"])
                found.points += [
                    (key, row["step"], value) for key, value in row.items() if key != "step" and key[0] != "_"
                ]
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def _records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    with suppress(AssertionError):  # a file that the test has truncated
        store.open_for_scan(str(path))
        while (content := store.scan_data()) is not None:
            yield Record.FromString(content)
    store.close()


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def files(cwd: Path, run_id: str) -> list[Path]:
    return sorted((cwd / "runs" / "wandb").glob(f"*-{run_id}/run-{run_id}.wandb"))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Reset W&B, which reads its environment once per process; the next test has another."""
    yield
    wandb.teardown()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.mark.usefixtures("offline")
def test_offline_file_equals_the_store(tmp_path: Path) -> None:
    done = bitrank(*SMOKE, "--configs", "B-FP", "--wandb", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wandb" not in done.stderr, "W&B prints into the table"
    for run in store_runs(tmp_path):
        (path,) = files(tmp_path, run["id"])
        found = recorded(path)
        assert sorted(found.points) == run["points"] and len(run["points"]) > 50
        assert {step for key, step, _ in found.points if key.startswith("train/")} >= {1, 20}
        assert (found.run.run_id, found.run.project, found.run.display_name) == (
            run["id"],
            "bitrank-smoke",
            run["name"],
        )
        assert found.run.run_group == run["tags"]["cell"]
        assert set(found.run.tags) == {"B-FP", run["tags"]["task"], "baseline", "smoke"}
        assert found.run.notes == run["tags"]["mlflow.note.content"]
        tags = {key: run["tags"][key] for key in ("spec_id", "git_commit", "stored_as")}
        expected = {"steps": 20, "seed": 0, "mlflow_run_id": run["id"], **tags}
        assert {key: found.config[key] for key in expected} == expected
        assert (found.exit_code, found.summary["status"]) == (0, "FINISHED")


ONE = (*SMOKE, "--configs", "B-FP", "--tasks", "toy_articles", "--wandb")
ENDS: dict[str, Callable[[Any], None]] = {
    "child": kill_children_of,
    "terminate": subprocess.Popen.terminate,
    "parent": subprocess.Popen.kill,
}


def cut(cwd: Path, how: str) -> None:
    """Start the run of :data:`ONE` and end it after its first checkpoint by ``ENDS[how]``."""
    process = start(*ONE, cwd=cwd)
    folder = wait_for(cwd, "checkpoint", timeout=400)
    ENDS[how](process)
    process.wait(timeout=60)
    assert not (folder / "result.json").exists(), "the run was over before the signal came: it proves nothing"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("how", "ended"), [("child", 137), pytest.param("terminate", 143, marks=pytest.mark.slow)]
)
def test_killed_run_continues_under_its_id_without_duplicate_points(
    tmp_path: Path, how: str, ended: int
) -> None:
    cut(tmp_path, how)
    again = bitrank(*ONE, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    (run,) = store_runs(tmp_path)
    first, second = map(recorded, files(tmp_path, run["id"]))
    assert first.points and second.points
    assert sorted(first.points + second.points) == run["points"]
    assert first.numbers + second.numbers == list(range(len(first.numbers + second.numbers)))
    assert (first.exit_code, second.exit_code) == (ended, 0)
    assert (first.summary["status"], second.summary["status"]) == ("KILLED", "FINISHED")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kept", [0.0, 0.002, 0.3, 0.72, 0.999])
def test_truncated_file_is_completed_by_the_next_one(tmp_path: Path, kept: float) -> None:
    spec = make_spec(find_profile("smoke"), "B-FP", "toy_articles")
    folder = tmp_path / "runs" / "work" / spec.spec_id
    folder.mkdir(parents=True)
    events = [
        {"event": "train", "step": step, "metrics": {"train/loss": 1 / step, "train/lr": step / 7}}
        for step in range(1, 400)
    ]
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    seal(folder, {"eval/loss": 0.25})
    for status in ("KILLED", "FINISHED"):
        messages: list[str] = []
        log = WandbTracker(folder.parent, messages.append).open(spec, "a" * 32)
        log.events(events[:150])
        log.close(folder, status, {})
        assert not messages
        wandb.teardown()  # its process has the file open a while longer
        if status == "KILLED":
            (path,) = files(tmp_path, "a" * 32)
            os.truncate(path, int(kept * path.stat().st_size))
            path.parent.rename(
                path.parent.with_name(path.parent.name.replace("offline-run-2", "offline-run-1"))
            )  # not within a second
    first, second = map(recorded, files(tmp_path, "a" * 32))
    assert bool(first.points) == (kept > 0.2)
    assert sorted(first.points + second.points) == sorted(
        [("eval/loss", 0, 0.25)]
        + [(key, event["step"], value) for event in events for key, value in event["metrics"].items()]
    )


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "first", [pytest.param((), id="without", marks=pytest.mark.slow), pytest.param(("--wandb",), id="with")]
)
def test_run_continues_where_the_file_of_a_killed_parent_ends(tmp_path: Path, first: tuple[str, ...]) -> None:
    """W&B writes in blocks, so a killed parent loses the last one; a run started without it has no file."""
    arguments = (*SMOKE, "--configs", "B-FP", "--tasks", "toy_articles")
    process = start(*arguments, *first, cwd=tmp_path)
    wait_for(tmp_path, "checkpoint", timeout=400)
    process.kill()
    process.wait(timeout=60)
    assert bitrank(*arguments, "--wandb", cwd=tmp_path).returncode == 0
    (run,) = store_runs(tmp_path)
    found = [recorded(path) for path in files(tmp_path, run["id"])]
    assert len(found) == 1 + len(first)
    assert sorted(point for file in found for point in file.points) == run["points"]


# The process of the run exits at interpreter start, with code 7.
_GIVES_UP = """
import os, sys
if "bitrank.run" in sys.orig_argv:
    os._exit(7)
"""


@pytest.mark.usefixtures("offline")
def test_failed_run_has_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_GIVES_UP)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    arguments = [
        sys.executable,
        "-m",
        "bitrank",
        *SMOKE,
        "--configs",
        "B-FP",
        "--tasks",
        "toy_articles",
        "--wandb",
    ]
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    (run,) = store_runs(tmp_path)
    (path,) = files(tmp_path, run["id"])
    found = recorded(path)
    assert run["status"] == "FAILED" and (found.exit_code, found.summary["status"]) == (7, "FAILED")
    assert found.summary["failure"] == run["tags"]["failure"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with serving(KEY) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


@pytest.mark.parametrize("how", ["child", pytest.param("parent", marks=pytest.mark.slow)])
def test_server_receives_every_point_once(tmp_path: Path, server: Server, how: str) -> None:
    cut(tmp_path, how)
    ((name, kept),) = server.runs.items()
    assert how == "parent" or (kept.history and kept.exit_code == 137)
    done = bitrank(*ONE, cwd=tmp_path)
    assert done.returncode == 0 and "failed" not in done.stderr, done.stdout + done.stderr
    (run,) = store_runs(tmp_path)
    assert (name, kept.starts, kept.exit_code, list(server.runs)) == (run["id"], 2, 0, [name])
    assert (kept.variables["displayName"], kept.variables["groupName"]) == (run["name"], run["tags"]["cell"])
    rows = [kept.history[number] for number in sorted(kept.history)]
    assert [row["_step"] for row in rows] == list(kept.history) == list(range(len(rows)))
    points = [
        (key, row["step"], value)
        for row in rows
        for key, value in row.items()
        if key != "step" and key[0] != "_"
    ]
    assert sorted(points) == run["points"]


def test_failing_wandb_loses_no_data_and_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server there
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    done = bitrank(*SMOKE, "--configs", "B-FP", "--wandb", "--jobs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("Weights & Biases failed") == 1 and "Traceback" not in done.stderr
    runs = store_runs(tmp_path)
    assert [run["status"] for run in runs] == ["FINISHED"] * 2
    assert all(len(run["points"]) > 50 for run in runs)
    assert KEY not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("key", ["s3cret" * 7, "hunter2"])
def test_rejected_key_is_reported_once_and_never_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, key: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
    messages: list[str] = []
    tracker, spec = (
        WandbTracker(tmp_path / "runs" / "work", messages.append),
        make_spec(find_profile("smoke"), "B-FP", "toy_articles"),
    )
    for run_id in ("a" * 32, "b" * 32):
        log = tracker.open(spec, run_id)
        log.events(
            [{"event": "train", "step": 1, "metrics": {"train/loss": 1.0}, "tags": {"hardware": "any"}}]
        )
        log.close(tmp_path, "KILLED", {"exit_code": "-9"})
    (message,) = messages
    assert "Weights & Biases failed" in message and key not in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert not server.runs


def test_error_during_a_run_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    messages: list[str] = []
    log = WandbTracker(tmp_path / "runs" / "work", messages.append).open(
        make_spec(find_profile("smoke"), "B-FP", "toy_articles"), "c" * 32
    )
    monkeypatch.setattr(
        log._run, "log", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError(f"{KEY} went down the pipe"))
    )
    for step in (1, 2):
        log.events([{"event": "train", "step": step, "metrics": {"train/loss": 1.0}}])
    log.close(tmp_path, "FINISHED", {})  # without a result, as after a failure
    assert len(messages) == 1 and "BrokenPipeError: *** went down the pipe" in messages[0]


def test_missing_key_is_reported_before_the_store_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitrank.errors import UserError
    from bitrank.tracking import wandb_tracker

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for arguments in (
        SMOKE,
        ("run", "--profile", "smoke", "--config", "B-FP", "--task", "toy_articles"),
        ("study", "allocators", "--quick"),
    ):
        done = bitrank(*arguments, "--wandb", cwd=tmp_path)
        assert done.returncode == 2 and "WANDB_API_KEY" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(wandb_tracker, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'wandb"):
        wandb_tracker.WandbTracker(tmp_path / "work")


def test_wandb_is_imported_only_on_request(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bitrank.tracking.base import open_tracking\n"
        "import bitrank.execution.matrix, bitrank.cli.main\n"
        "open_tracking('runs', 'smoke', Path('runs/work')).runs()\n"
        "print(sorted({'wandb', 'bitrank.tracking.wandb_tracker'} & set(sys.modules)))"
    )
    messages = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert messages.stdout.strip() == "[]"
