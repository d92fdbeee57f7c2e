"""Truncate or garble any file of a run: the next start gives equal results or names the file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from study_tools import SMOKE, bitrank, kill_children_of, start, wait_for

ARGUMENTS = (*SMOKE, "--configs", "Joint-1", "--tasks", "toy_articles", "--set", "checkpoint_every=4")
REST = pytest.param(("empty", "half", "last byte lost"), marks=pytest.mark.slow, id="more")
FIGURES = ("eval/", "zero/", "model/", "lora/", "train/best_step", "train/tokens")

# Resumes a copy of the run per case in one process, because imports take longer than a tiny run.
CONTINUE = """
import json, shutil, sys
from pathlib import Path
from bitrank.process.events import read_events
from bitrank.run import __main__ as child
child.exit_with_parent = lambda: None
folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
DAMAGES = {
    "empty": lambda content: b"",
    "first byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "last byte lost": lambda content: content[:-1],
    "garbled": lambda text: text[: len(text) // 2] + b"\\xff\\x00" + text[len(text) // 2 + 2 :],
}
for name, damage in cases:
    copy = folder.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(DAMAGES[damage](content))
    code = child.main(copy)
    result = json.loads((copy / "result.json").read_text()) if code == 0 else {}
    messages = [event.get("message", "") for event in read_events(copy / "events.jsonl")]
    failure = copy / "failure.json"
    messages += [json.loads(failure.read_text())["message"]] if failure.exists() else []
    print("CASE", json.dumps([name, damage, code, result, [text for text in messages if text]]), flush=True)
"""


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Results determined by the run's spec: no times, speeds and memory."""
    return {key: value for key, value in result.items() if key.startswith(FIGURES)}


def continue_copies(
    folder: Path, cases: list[tuple[str, str]]
) -> list[tuple[str, str, int, dict[str, Any], list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", CONTINUE, str(folder), json.dumps(cases)],
        capture_output=True, text=True, check=False, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = [line.removeprefix("CASE ") for line in done.stdout.splitlines() if line.startswith("CASE ")]
    assert len(lines) == len(cases), done.stdout + done.stderr
    return [tuple(json.loads(line)) for line in lines]


def files_of(folder: Path) -> list[str]:
    """Files that a continued run may read; ``log.txt`` is read by people only."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.endswith((".lock", "log.txt", "spec.json")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, with its last checkpoint."""
    cwd = tmp_path_factory.mktemp("finished")
    done = bitrank(*ARGUMENTS, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (cwd / "runs/work").glob("*/result.json")
    return folder.parent


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed with two checkpoints."""
    cwd = tmp_path_factory.mktemp("interrupted")
    process = start(*ARGUMENTS, cwd=cwd)
    folder = wait_for(cwd, "checkpoint", count=3)
    kill_children_of(process)
    process.wait(timeout=60)
    assert not (folder / "result.json").exists(), "the run was over before it was killed: it proves nothing"
    return folder


@pytest.mark.parametrize("damages", [pytest.param(("first byte", "garbled"), id="some"), REST])
def test_damaged_file_of_an_interrupted_run_changes_no_result(
    interrupted: Path, finished: Path, damages: tuple[str, ...]
) -> None:
    names = files_of(interrupted)
    checkpoints = sorted({name.split("/")[1] for name in names if "/step-" in name})
    assert len(checkpoints) == 2, names
    cases = [(name, damage) for name in names for damage in damages]
    expected = figures(json.loads((finished / "result.json").read_text()))
    reported = 0
    for name, damage, code, result, messages in continue_copies(interrupted, cases):
        assert code == 0, (name, damage, messages)
        assert figures(result) == expected, (name, damage)
        if f"/{checkpoints[-1]}/" in name:
            reported += 1
            assert any("is damaged" in text for text in messages), (name, damage)
    assert reported == 3 * len(damages), "every file of the newest checkpoint"


@pytest.mark.parametrize("damages", [pytest.param(("garbled",), id="some"), REST])
def test_damaged_file_of_a_finished_run_is_made_again(finished: Path, damages: tuple[str, ...]) -> None:
    expected = figures(json.loads((finished / "result.json").read_text()))
    names = files_of(finished)
    sealed = {"result.json", "digests.json", "plan.json", "ranks.json", "predictions.parquet"}
    assert sealed | {"zero_shot.json"} <= set(names)
    cases = [(name, damage) for name in names for damage in damages]
    for name, damage, code, result, messages in continue_copies(finished, cases):
        assert code == 0, (name, damage, messages)
        assert figures(result) == expected, (name, damage)


def test_truncated_spec_is_reported(finished: Path) -> None:
    ((_, _, code, _, messages),) = continue_copies(finished, [("spec.json", "half")])
    assert code != 0
    assert any("spec.json" in text for text in messages)


def test_matrix_repairs_a_run_with_a_truncated_result(tmp_path: Path) -> None:
    arguments = (*SMOKE, "--configs", "B-FP", "--tasks", "toy_articles")
    process = start(*arguments, cwd=tmp_path)
    folder = wait_for(tmp_path, "checkpoint", count=1)
    kill_children_of(process)
    process.wait(timeout=60)
    (folder / "result.json").write_text('{"eval/loss": 0.0')
    (folder / "progress.json").unlink(missing_ok=True)
    with (folder / "events.jsonl").open("ab") as events:
        events.write(b"\x00\x00garbled\xff\n")
    done = bitrank(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    shutil.rmtree(folder)
