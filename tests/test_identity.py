"""Edited inputs and unusual paths through the real command line: no stale results, no unreadable store."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import write_spec
from bitrank.tracking.store import Store, open_store
from study_tools import bitrank, store_runs

ODD = "a#b 50%20 [x]?"
RUN = ("run", "--profile", "smoke", "--config", "B-FP", "--set", "steps=4")


def write_reviews(path: Path, good: str = "good") -> Path:
    nouns = ("film", "story", "cast", "score", "plot")
    rows = [
        f"the {nouns[number % 5]} {nouns[number // 8]} is {good if number % 2 else 'bad'},{number % 2}"
        for number in range(40)
    ]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def run_on(path: Path, cwd: Path) -> tuple[str, list[dict[str, Any]]]:
    done = bitrank(*RUN, "--task", str(path), cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, store_runs(cwd)


def test_edited_data_makes_a_new_run_and_restored_data_finds_the_old_one(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv")
    _, first = run_on(path, tmp_path)
    write_reviews(path, "fine")
    _, both = run_on(path, tmp_path)
    assert len(first) == 1 and len(both) == 2 and {run["status"] for run in both} == {"FINISHED"}
    assert (
        len({run["tags"]["spec_id"] for run in both})
        == len({run["params"]["data_digest"] for run in both})
        == 2
    )

    write_reviews(path)
    copy = write_reviews(tmp_path / "copy.csv")
    for same in ("reviews.csv", str(path), str(copy)):
        output, runs = run_on(Path(same), tmp_path)
        assert len(runs) == 2, "the run on this content was finished"
        assert "1 of 1 runs are complete" in output


@pytest.mark.parametrize("which", ["data", "plan"])
def test_run_stops_if_its_inputs_change_before_they_are_read(which: str, tmp_path: Path) -> None:
    path, plan = write_reviews(tmp_path / "reviews.csv"), tmp_path / "mine.json"
    plan.write_text(json.dumps({"precision": {}, "ranks": {"encoder.layer.0.attention.self.query": 4}}))
    spec = make_spec(PROFILES["smoke"], "", str(path), {"plan": str(plan), "steps": 2})
    folder = tmp_path / "run"
    folder.mkdir()
    write_spec(spec, folder / "spec.json")
    if which == "data":
        write_reviews(path, "fine")
    else:
        plan.write_text(plan.read_text().replace("4}", "2}"))
    done = subprocess.run(
        [sys.executable, "-m", "bitrank.run", str(folder)], capture_output=True, text=True, check=False
    )
    failure = json.loads((folder / "failure.json").read_text())
    assert done.returncode == failure["code"] == 2 and failure["kind"] == "UserError"
    assert f"{path if which == 'data' else plan} changed after this run was requested" in failure["message"]
    assert not (folder / "result.json").exists()


def served(store: str, run_id: str, cwd: Path) -> bytes:
    """``spec.json`` of a run as the UI's server returns it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [
        sys.executable,
        "-m",
        "bitrank",
        "ui",
        "--profile",
        "smoke",
        "--store",
        store,
        "--port",
        str(port),
    ]
    server = subprocess.Popen(
        arguments, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}/get-artifact?path=spec.json&run_uuid={run_id}"
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                return bytes(urllib.request.urlopen(address, timeout=30).read())
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.5)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def test_every_command_works_on_a_store_with_special_characters_in_its_path(tmp_path: Path) -> None:
    store, results = str(tmp_path / ODD), str(tmp_path / "results")
    arguments = ("--profile", "smoke", "--store", store)
    done = bitrank(*RUN, "--task", "toy_sentences", "--store", store, "--results", results, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = bitrank(
        "list",
        *arguments,
        "--configs",
        "B-FP",
        "--tasks",
        "toy_sentences",
        "--set",
        "steps=4",
        "--json",
        cwd=tmp_path,
    )
    assert [row["state"] for row in json.loads(listed.stdout)] == ["done"], listed.stderr

    sql = "SELECT run_id, count(*) AS rows FROM predictions GROUP BY ALL"
    answer = bitrank("sql", sql, "--store", store, "--format", "json", cwd=tmp_path)
    (row,) = json.loads(answer.stdout)
    assert row["rows"] == 32, answer.stderr
    report = bitrank("report", *arguments, "--out", str(tmp_path / "report"), cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert (
        "B-FP" in (tmp_path / "report" / "report.html").read_text() and "cannot be read" not in report.stdout
    )

    folder = Path(store)
    spec = json.loads(served(store, row["run_id"], tmp_path))
    assert spec["task"] == "toy_sentences"
    info = open_store(store).get_run(row["run_id"]).info
    assert info.artifact_uri == f"{Store.parse(store).artifact_uri}/bitrank-smoke/{row['run_id']}/artifacts"
    assert (
        folder / "artifacts" / "bitrank-smoke" / row["run_id"] / "artifacts" / "predictions.parquet"
    ).is_file()
    made = {path.name for path in tmp_path.iterdir()} - {"results", "report"}
    assert made == {ODD}, "nothing is written beside the store"
