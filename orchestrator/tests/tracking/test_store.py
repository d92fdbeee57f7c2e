"""A store under any path: all readers find the written runs."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from bitrank.cli.list import rows
from bitrank.errors import UserError
from bitrank.process.run_folder import seal
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.run_state import read_runs
from bitrank.tracking.sqlite_store import has_store
from bitrank.tracking.store import Store, open_store
from bitrank_analysis import load_study
from bitrank_analysis import open_store as open_for_analysis

NAMES = ("plain", "two words", "a#b", "what?", "50%", "a%20b", "a%23b", "[x]", "ü & co;=+", "?uri=true#x%3F")


@pytest.mark.parametrize("name", ("what? a#b", "50% a%20b%23 [x]"))  # a store takes seconds to create
def test_every_reader_finds_the_written_run(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    spec = make_spec(PROFILES["smoke"], "B-FP", "toy_sentences")
    tracker = Tracker(open_store(str(folder)), str(folder), "smoke")
    log = tracker.open(spec, None)
    made = tmp_path / "work"
    made.mkdir()
    (made / "spec.json").write_text(json.dumps({"seed": 7}))
    seal(made, {"eval/acc": 0.5})
    log.close(made, "FINISHED", {})

    place = Store.parse(str(folder))
    assert place.database == folder / "mlflow.db" and place.database.is_file()
    found = read_runs(place.database, "bitrank-smoke")[spec.spec_id]
    assert (found.run_id, found.figures) == (log.run_id, {"eval/acc": 0.5})
    analysis = open_for_analysis(str(folder))
    assert analysis.sql("SELECT run_id, spec->>'seed' FROM specs").fetchall() == [(log.run_id, "7")]
    assert analysis.sql("SELECT * FROM unread").fetchall() == []
    fetched = tracker.client.download_artifacts(log.run_id, "spec.json", str(made))
    assert json.loads(Path(fetched).read_text()) == {"seed": 7}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, "work"}), (
        "nothing is written elsewhere"
    )
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in folder.iterdir()} == {
        "mlflow.db",
        "mlflow.lock",
        "artifacts",
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_uri_of_a_store_names_the_same_store(name: str, tmp_path: Path) -> None:
    place = Store.parse(str(tmp_path / name))
    assert Store.parse(place.uri) == place
    assert Store.parse(place.uri).uri == place.uri


def test_forms_of_a_plain_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Store.parse("runs")
    assert place.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert place.artifact_uri == f"file://{tmp_path}/runs/artifacts"
    assert place.work == tmp_path / "runs" / "work"
    assert Store.parse("sqlite:///runs/mlflow.db") == place
    server = Store.parse("https://host:5000")
    assert (server.uri, server.database, server.artifact_uri, server.work) == (
        "https://host:5000", None, None, tmp_path / "runs" / "work",
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["mysql://x/y", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:a.db?uri=true"]
)
def test_other_stores_are_rejected(text: str) -> None:
    with pytest.raises(UserError, match="cannot use the store"):
        Store.parse(text)


def test_a_file_of_another_program_is_rejected_under_any_path(tmp_path: Path) -> None:
    path = tmp_path / "a#b?.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(UserError, match="is a SQLite file but not an MLflow store"):
        has_store(path)


@pytest.mark.parametrize(
    ("profile", "stored"), [("smoke", {"adapter", "checkpoint"}), ("smoke-rates", set[str]())]
)
def test_weights_are_stored_unless_the_run_only_chooses_a_learning_rate(
    tmp_path: Path, profile: str, stored: set[str]
) -> None:
    store, folder = str(tmp_path / "runs"), tmp_path / "work"
    spec = replace(make_spec(PROFILES["smoke"], "B-FP", "toy_sentences"), profile=profile)
    for name in ("adapter", "checkpoint"):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").write_bytes(b"w")
    seal(folder, {"eval/acc": 0.5})
    log = Tracker(open_store(store), store, profile).open(spec, None)
    log.close(folder, "FINISHED", {})
    artifacts = tmp_path / "runs" / "artifacts" / f"bitrank-{profile}" / log.run_id / "artifacts"
    assert {path.name for path in artifacts.iterdir() if path.is_dir()} == stored
    assert (artifacts / "result.json").is_file()


def test_an_old_store_without_digests_and_file_uris_is_read_and_listed(tmp_path: Path) -> None:
    store = str(tmp_path / "runs")
    client = open_store(store)
    client.create_experiment(
        "bitrank-smoke", artifact_location=str(tmp_path / "runs" / "artifacts" / "bitrank-smoke")
    )
    spec = make_spec(PROFILES["smoke"], "B-FP", "toy_sentences")
    old = replace(spec, data_digest=None, model_digest=None)
    log = Tracker(client, store, "smoke").open(old, None)
    (tmp_path / "spec.json").write_text(json.dumps({"seed": 7}))
    seal(tmp_path, {"eval/acc": 0.5, "time/total_s": 9.0})
    log.close(tmp_path, "FINISHED", {})

    stated = {row["spec_id"]: (row["state"], row["seconds"]) for row in rows([old, spec], store)}
    assert stated == {old.spec_id: ("done", 9.0), spec.spec_id: ("new", 9.0)}
    study = load_study(open_for_analysis(store))
    assert list(study.runs["run_id"]) == [log.run_id]
    assert study.database.sql("SELECT spec->>'seed' FROM specs").fetchall() == [("7",)]
