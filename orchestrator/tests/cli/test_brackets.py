"""Names of files, runs and models are shown as they are: square brackets are no markup of the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from bitrank.cli.display import Progress, results_table
from bitrank.cli.main import main
from bitrank.cli.matrix import show
from bitrank.execution.attempt import Job
from bitrank.execution.matrix import Options
from bitrank.execution.options import Execution
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.run_state import State
from rich.console import Console

SPEC = RunSpec("my[old]", "films[bold].csv", "tiny-bert", profile="mine")
NAME = "my[old] films[bold] s0"


def job() -> Job:
    return Job(SPEC, Path("runs/work") / SPEC.spec_id, State("new"), "running", "")


def test_the_table_of_results_has_the_whole_name(capsys: pytest.CaptureFixture[str]) -> None:
    written = io.StringIO()
    Console(file=written, width=160).print(results_table([(SPEC, {}, "failed")]))
    assert NAME in written.getvalue()


def test_the_live_table_has_the_whole_name() -> None:
    written = io.StringIO()
    with Progress([job()], Console(file=written, width=160, force_terminal=True)) as progress:
        progress.changed(job())
    assert NAME in written.getvalue()


def test_the_folder_of_results_has_its_whole_name(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    show([job()], Options("runs", Path("results[old]"), Execution()))
    assert "results: results[old]   store: " in capsys.readouterr().out


def test_the_list_of_runs_has_the_whole_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    rows = "".join(f"film {n} is good,{n % 2}\n" for n in range(40))
    (place / "films[bold].csv").write_text("text,label\n" + rows)
    words = ["--profile", "smoke", "--configs", "B-FP", "--tasks", "films[bold].csv"]
    assert main(["list", *words, "--set", "model=my[red]model"]) == 0
    shown = capsys.readouterr().out
    assert "B-FP films[bold] s0" in shown and "my[red]model" in shown
