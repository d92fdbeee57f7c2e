"""Truncate any file of a run at any byte: the next start gives equal results or names the file."""

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

FIGURES = ("eval/", "zero/", "model/", "lora/", "train/best_step", "train/tokens")

# Resumes a copy of the run per case in one process, because imports take longer than a tiny run.
CONTINUE = """
import json, shutil, sys
from pathlib import Path
from bitrank.run import __main__ as child
child.exit_with_parent = lambda: None
folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
for name, share in cases:
    copy = folder.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(len(content) * share)])
    code = child.main(copy)
    result = json.loads((copy / "result.json").read_text()) if code == 0 else {}
    lines = (copy / "events.jsonl").read_text().splitlines()
    messages = [json.loads(line).get("message", "") for line in lines]
    failure = copy / "failure.json"
    messages += [json.loads(failure.read_text())["message"]] if failure.exists() else []
    print("CASE", json.dumps([name, share, code, result, [text for text in messages if text]]), flush=True)
"""


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Results determined by the run's spec: no times, speeds and memory."""
    return {key: value for key, value in result.items() if key.startswith(FIGURES)}


def continue_copies(
    folder: Path, cases: list[tuple[str, float]]
) -> list[tuple[str, float, int, dict[str, Any], list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", CONTINUE, str(folder), json.dumps(cases)],
        capture_output=True, text=True, check=False, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = [line.removeprefix("CASE ") for line in done.stdout.splitlines() if line.startswith("CASE ")]
    assert len(lines) == len(cases), done.stdout + done.stderr
    return [tuple(json.loads(line)) for line in lines]


def files_of(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.endswith((".lock", "log.txt", "spec.json")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, with its last checkpoint."""
    cwd = tmp_path_factory.mktemp("finished")
    done = bitrank(
        *SMOKE, "--configs", "Joint-1", "--tasks", "toy_articles", "--set", "checkpoint_every=4", cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (cwd / "runs/work").glob("*/result.json")
    return folder.parent


def test_truncated_file_of_an_interrupted_run_changes_no_result(tmp_path: Path, finished: Path) -> None:
    arguments = (*SMOKE, "--configs", "Joint-1", "--tasks", "toy_articles", "--set", "checkpoint_every=4")
    process = start(*arguments, cwd=tmp_path)
    folder = wait_for(tmp_path, "checkpoint", count=3)
    kill_children_of(process)
    process.wait(timeout=60)
    assert not (folder / "result.json").exists(), "the run was over before it was killed: it proves nothing"
    names = files_of(folder)
    assert sum("/step-" in name for name in names) == 6, names
    cases = [(name, share) for name in names for share in (0, 0.6)]
    expected = figures(json.loads((finished / "result.json").read_text()))
    for name, share, code, result, messages in continue_copies(folder, cases):
        assert code == 0, (name, share, messages)
        assert figures(result) == expected, (name, share)
        if "/step-" in name and name >= max(names)[: len("checkpoint/step-00000000")]:
            assert any("is damaged" in text for text in messages), (name, share)


def test_truncated_file_of_a_finished_run_is_made_again(finished: Path) -> None:
    expected = figures(json.loads((finished / "result.json").read_text()))
    names = [
        name
        for name in files_of(finished)
        if name not in ("events.jsonl", "failure.json", "micro_tokens.txt")
    ]
    assert {
        "result.json",
        "digests.json",
        "plan.json",
        "ranks.json",
        "predictions.parquet",
        "zero_shot.json",
    } <= set(names)
    for name, share, code, result, messages in continue_copies(finished, [(name, 0.7) for name in names]):
        assert code == 0, (name, share, messages)
        assert figures(result) == expected, name


def test_truncated_spec_is_reported(finished: Path) -> None:
    ((_, _, code, _, messages),) = continue_copies(finished, [("spec.json", 0.5)])
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
