"""Commands print where a run's folder is, and `bitrank export` takes its spec id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitrank
import pytest
from bitrank.cli.main import main
from bitrank.cli.matrix import show
from bitrank.execution.attempt import Job
from bitrank.execution.matrix import Options
from bitrank.execution.options import Execution
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.tracking.run_state import State
from bitrank.tracking.store import Store

SPECS = [
    make_spec(find_profile("smoke"), "B-FP", "toy_sentences", {"steps": steps, "seed": 0}) for steps in (1, 2)
]


@pytest.fixture
def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """The lines that end a command whose first ``count`` runs have folders in ``store``."""
    monkeypatch.chdir(tmp_path)

    def run(store: str, count: int) -> list[str]:
        options = Options(store, Path("results"), Execution("local", 1))
        jobs = [Job(spec, options.work / spec.spec_id, State("done"), "done", "") for spec in SPECS]
        for job in jobs[:count]:
            job.folder.mkdir(parents=True, exist_ok=True)
        show(jobs, options)
        return capsys.readouterr().out.partition("runs are complete.\n")[2].splitlines()[1:]

    return run


def test_command_ends_with_the_folder_of_its_run_and_the_ui_of_its_store(
    printed: Callable[..., list[str]], tmp_path: Path
) -> None:
    first, _ = SPECS
    default = f"results: results   store: sqlite:///{tmp_path}/runs/mlflow.db   UI: make ui"
    assert printed("runs", 0) == [default]
    work = Path("runs", "work")
    assert printed("runs", 1) == [f"run: {work / first.spec_id}", default]
    assert printed("runs", 2) == [f"runs: {work / 'SPEC_ID'}   (spec ids: bitrank list)", default]
    folder, places = printed("my store", 1)
    assert folder == f"run: {Path('my store', 'work', first.spec_id)}"
    assert places.endswith("   UI: bitrank ui --store 'my store'")


def test_a_server_is_its_own_ui(printed: Callable[..., list[str]]) -> None:
    *_, places = printed("http://tracking:5000", 0)
    assert places == "results: results   store: http://tracking:5000   UI: http://tracking:5000"


def test_export_finds_a_spec_id_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without an adapter: the folder is found, and the message says what it lacks."""
    monkeypatch.chdir(tmp_path)
    folder = Store.parse("elsewhere").work / "0123456789ab"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text("{}")

    def message(*options: Any) -> str:
        assert main(["export", *options, "--out", "merged"]) == 2
        return capsys.readouterr().err

    found = f"the run in {folder} is not finished"
    assert found in message("0123456789ab", "--store", "elsewhere")
    assert found in message(str(folder))
    assert "there is no folder 0123456789ab: expected a spec id of the store" in message("0123456789ab")


def test_version_of_the_command_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"bitrank {bitrank.__version__}\n"
