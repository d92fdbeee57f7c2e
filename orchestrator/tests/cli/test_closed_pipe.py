"""A closed pipe ends a command quietly and its runs as KILLED; a closed output keeps the exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bitrank.cli.display import Progress
from bitrank.terminal import READER_GONE, console, until_reader_is_gone
from bitrank.tracking.store import Store
from mlflow import MlflowClient

SMOKE = ["--task", "toy_sentences", "--profile", "smoke", "--store", "S"]
RUN = ["run", "--config", "B-FP", *SMOKE, "--results", "R", "--max-steps", "100000"]
PLAN = ["plan", *SMOKE, "--budget", "9bits"]


def closed(arguments: list[str], folder: Path, lines: int, both: bool = False) -> tuple[int, str]:
    """Exit code and standard error of a command whose output is closed after ``lines`` lines.

    Standard error goes to the closed pipe too with ``both``. The cache is empty: a command that finds all in
    it writes its output at once, before the pipe can be closed.
    """
    reading, writing = os.pipe()
    error = folder / "error.txt"
    with error.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "bitrank", *arguments],
            cwd=folder,
            env=os.environ | {"BITRANK_CACHE": str(folder / "cache")},
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing if both else file,
        )
    os.close(writing)
    with os.fdopen(reading) as pipe:
        for _ in range(lines):
            assert pipe.readline()
    return process.wait(timeout=300), error.read_text()


@pytest.mark.parametrize("both", [False, True])
def test_a_run_without_a_reader_is_closed_as_killed(tmp_path: Path, both: bool) -> None:
    code, error = closed(RUN, tmp_path, 1, both)
    assert code == 141
    assert error == ("" if both else "\nstopped by SIGPIPE; repeat the same command to continue\n")
    client = MlflowClient(Store.parse(str(tmp_path / "S")).uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert [run.info.status for run in client.search_runs(experiments)] == ["KILLED"]


def test_a_command_without_a_reader_ends_quietly(tmp_path: Path) -> None:
    assert closed(["list", "--arms"], tmp_path, 0) == (141, "")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_text_of_argparse_without_a_reader_ends_quietly(tmp_path: Path, option: str) -> None:
    code, error = closed([option], tmp_path, 0)
    assert code in {0, 141} and not error  # argparse ignores an error of writing, but not one of flushing


def test_progress_without_a_reader_ends_a_plan_quietly(tmp_path: Path) -> None:
    assert closed(PLAN, tmp_path, 1, both=True)[0] == 141


def test_a_broken_pipe_of_another_cause_is_an_error() -> None:
    def command() -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        until_reader_is_gone(command)
    assert until_reader_is_gone(lambda: 0) == 0 and READER_GONE == 141


def shell(line: str, folder: Path) -> tuple[int, str]:
    """Exit code and standard error of ``line``, where ``bitrank`` is the command with a buffered output."""
    done = subprocess.run(
        ["sh", "-c", f'bitrank() {{ "$PYTHON" -m bitrank "$@"; }}; {line}'],
        cwd=folder,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_closed_output_keeps_the_exit_code(tmp_path: Path) -> None:
    assert shell("bitrank doctor --help >&-", tmp_path) == (0, "")
    code, error = shell("bitrank run --config B-FP --task nosuch >&-", tmp_path)
    assert code == 2 and error.startswith("bitrank: unknown task 'nosuch'") and error.count("\n") == 1


def test_closed_error_output_writes_nothing_to_the_output(tmp_path: Path) -> None:
    line = "bitrank run --config B-FP --task nosuch 2>&- >out; echo $? >code"
    shell(line, tmp_path)
    assert (tmp_path / "out").read_text() == "" and (tmp_path / "code").read_text() == "2\n"


def test_progress_needs_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert Progress([]) and console().width == 160


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "doctor --help",
            "cannot write the output: No space left on device; send it to another file or to a pipe",
        ),
        (
            "list",
            "the disk is full; free space, or send the output, --store, --results or BITRANK_CACHE elsewhere",
        ),
    ],
)
def test_output_on_a_full_disk_is_a_failure_in_one_line(tmp_path: Path, arguments: str, said: str) -> None:
    assert shell(f"bitrank {arguments} >/dev/full", tmp_path) == (1, f"bitrank: {said}\n")
    assert shell("bitrank doctor --help >/dev/full 2>&1", tmp_path) == (1, "")
