"""Stores of a tracking server: their artifacts are read from a mounted or copied folder."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from bitrank_analysis import AnalysisError, load_study, open_store, query, without_predictions, write_bundle
from bitrank_analysis.artifacts import local_folder
from bitrank_analysis.paper import write_paper
from bitrank_analysis.report import write_report
from studies import add_study


@pytest.fixture
def local(maker: Any) -> str:
    """A store in a folder, with three arms on two tasks."""
    add_study(maker, arms=("B-FP", "B-Q4", "B-Ada"), n=40)
    return str(maker.folder)


def serve(maker: Any, folder: Path) -> str:
    """A copy of the store as a server has it: database and destination in two folders; returns the first."""
    (folder / "database").mkdir(parents=True)
    store = shutil.copy(maker.folder / "mlflow.db", folder / "database")
    (number,) = maker.sqlite.execute("SELECT experiment_id FROM experiments").fetchone()
    shutil.copytree(maker.folder / "artifacts" / "bitrank-test", folder / "destination" / str(number))
    with sqlite3.connect(store) as database:
        database.execute(
            "UPDATE runs SET artifact_uri = 'mlflow-artifacts:/' || experiment_id || '/' || run_uuid || "
            "'/artifacts'"
        )
    return str(folder / "database")


def test_report_paper_and_bundle_of_a_served_store_equal_those_of_the_local_store(
    local: str, maker: Any, tmp_path: Path
) -> None:
    served, artifacts = serve(maker, tmp_path / "server"), tmp_path / "server" / "destination"
    write_report(local, tmp_path / "a")
    write_report(served, tmp_path / "b", artifacts=artifacts)
    assert (tmp_path / "a" / "report.md").read_bytes() == (tmp_path / "b" / "report.md").read_bytes()
    write_paper(local, tmp_path / "c")
    write_paper(open_store(served, artifacts), tmp_path / "d")
    assert (tmp_path / "c" / "macros.tex").read_bytes() == (tmp_path / "d" / "macros.tex").read_bytes()
    write_bundle(local, tmp_path / "e")
    write_bundle(served, tmp_path / "f", artifacts=artifacts)
    assert (tmp_path / "e" / "evidence.json").read_bytes() == (tmp_path / "f" / "evidence.json").read_bytes()
    count = "SELECT count(*) AS rows FROM predictions"
    assert query(served, count, "csv", artifacts) == query(local, count, "csv") == "rows\n240\n"


def test_artifacts_copied_beside_the_database_are_found_without_an_option(
    local: str, maker: Any, tmp_path: Path
) -> None:
    served = serve(maker, tmp_path / "server")
    shutil.move(tmp_path / "server" / "destination", tmp_path / "server" / "database" / "artifacts")
    assert without_predictions(load_study(open_store(served))) == {}


def test_bundle_of_runs_without_readable_predictions_is_refused_and_not_written(
    local: str, maker: Any, tmp_path: Path
) -> None:
    served = serve(maker, tmp_path / "server")
    message = (
        r"none of the 6 finished runs of bitrank-test has predictions to keep: .* not on this machine: "
        r"mlflow-artifacts:/1/0*3/artifacts; give the folder that has them with --artifacts"
    )
    with pytest.raises(AnalysisError, match=message):
        write_bundle(served, tmp_path / "evidence")
    assert not (tmp_path / "evidence").exists()


def test_runs_whose_artifacts_are_missing_in_the_folder_are_named(
    local: str, maker: Any, tmp_path: Path
) -> None:
    served, artifacts = serve(maker, tmp_path / "server"), tmp_path / "server" / "destination"
    lost = f"{1:032x}"
    shutil.rmtree(artifacts / "1" / lost)
    study = load_study(open_store(served, artifacts))
    assert list(without_predictions(study)) == [lost] and len(study.runs) == 6
    bundle = write_bundle(served, tmp_path / "evidence", artifacts=artifacts)
    assert list(without_predictions(load_study(open_store(str(bundle))))) == [lost]


def test_absent_folder_of_artifacts_is_an_error(local: str, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"there is no folder .*nowhere; expected one with artifacts"):
        open_store(local, tmp_path / "nowhere")


@pytest.mark.parametrize(
    "uri",
    [
        "mlflow-artifacts:/7/abc/artifacts",
        "mlflow-artifacts://host:5000/7/abc/artifacts",
        "s3://bucket/some/prefix/7/abc/artifacts",
        "file:///elsewhere/7/abc/artifacts",
    ],
)
def test_folder_of_a_run_is_found_by_experiment_and_run(uri: str, tmp_path: Path) -> None:
    copied = tmp_path / "second" / "7" / "abc" / "artifacts"
    copied.mkdir(parents=True)
    assert local_folder(uri, [tmp_path / "first", tmp_path / "second"]) == copied
