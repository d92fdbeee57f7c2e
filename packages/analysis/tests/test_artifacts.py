"""Views over the files of runs: their rows, and the handling of unreadable files."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from bitrank_analysis import AnalysisError, open_store
from bitrank_analysis.artifacts import local_folder, read_predictions

RANKS = {"final": {"a": 4, "b": 2}, "over_time": {"10": {"a": 8, "b": 8}, "20": {"a": 4, "b": 2}}}
PLAN = {
    "precision": {"a": "nf4", "b": "bf16", "c": "int8"},
    "ranks": {"a": 8, "b": 8},
    "matrices": [{"name": "a", "role": "attention", "layer": 0, "shape": [4, 6], "tied_to": None}],
    "applied": {"a": {"format": "nf4", "backend": "bitsandbytes"}},
}


def test_ranks_view_has_final_ranks_and_ranks_by_step(maker, tmp_path: Path) -> None:
    run = maker.run("B-Ada", files={"ranks.json": RANKS})
    rows = open_store(str(tmp_path)).sql("SELECT * FROM ranks ORDER BY step NULLS LAST, matrix").fetchall()
    assert rows == [
        (run, "a", 10, 8, False),
        (run, "b", 10, 8, False),
        (run, "a", 20, 4, False),
        (run, "b", 20, 2, False),
        (run, "a", None, 4, True),
        (run, "b", None, 2, True),
    ]


def test_specs_view_is_json(maker, tmp_path: Path) -> None:
    run = maker.run("B-FP", files={"spec.json": {"clip": 1.5, "arm": {"rank": {"rank": 8}}}})
    query = "SELECT run_id, spec->>'clip', (spec->'arm'->'rank'->>'rank')::INT FROM specs"
    rows = open_store(str(tmp_path)).sql(query).fetchall()
    assert rows == [(run, "1.5", 8)]


def test_plans_view_joins_planned_and_stored_formats(maker, tmp_path: Path) -> None:
    run = maker.run("Joint-1", files={"plan.json": PLAN})
    rows = open_store(str(tmp_path)).sql("SELECT * FROM plans ORDER BY matrix").fetchall()
    assert rows == [
        (run, "a", "nf4", 8, "nf4@bitsandbytes", "attention", 0, [4, 6], None),
        (run, "b", "bf16", 8, None, None, None, None, None),
        (run, "c", "int8", None, None, None, None, None, None),
    ]


def test_predictions_of_both_task_kinds_are_united_by_column_name(maker, tmp_path: Path) -> None:
    classifier, model = maker.classifier("B-FP", [True, False]), maker.language_model("B-FP", [3.0], [2])
    database = open_store(str(tmp_path))
    counts = database.sql(
        "SELECT run_id, count(*), sum((label = prediction)::INT), sum(loss), sum(tokens) "
        "FROM predictions GROUP BY 1"
    )
    assert sorted(counts.fetchall()) == [(classifier, 2, 1, 1.0, 18), (model, 1, None, 3.0, 2)]


def test_damaged_and_remote_files_are_listed_and_do_not_affect_others(maker, tmp_path: Path) -> None:
    good = maker.classifier("B-FP", [True, True], files={"ranks.json": RANKS})
    damaged = maker.run(
        "B-Q4",
        files={
            "predictions.parquet": "PAR1 truncated",
            "ranks.json": '{"final": {"a"',
            "plan.json": "{",
            "spec.json": "[",
        },
    )
    remote = maker.run("B-Ada", uri="mlflow-artifacts:/1/abc/artifacts")
    database = open_store(str(tmp_path))
    unread = database.sql("SELECT run_id, file FROM unread ORDER BY ALL").fetchall()
    assert unread == [
        (damaged, "plan.json"),
        (damaged, "predictions.parquet"),
        (damaged, "ranks.json"),
        (damaged, "spec.json"),
        (remote, "all"),
    ]
    assert database.sql("SELECT DISTINCT run_id FROM predictions").fetchall() == [(good,)]
    assert database.sql("SELECT DISTINCT run_id FROM ranks").fetchall() == [(good,)]
    with pytest.raises(AnalysisError, match="not on this machine: mlflow-artifacts:/1/abc/artifacts"):
        read_predictions(database, remote)
    with pytest.raises(AnalysisError, match="not a whole Parquet file"):
        read_predictions(database, damaged)


def test_json_of_unexpected_structure_gives_no_rows(maker, tmp_path: Path) -> None:
    maker.run("B-FP", files={"ranks.json": [1, 2], "plan.json": {"precision": "all nf4", "ranks": None}})
    run = maker.run(
        "B-Ada", files={"ranks.json": {"final": {"a": 4}}, "plan.json": {"precision": {"a": "nf4"}}}
    )
    database = open_store(str(tmp_path))
    assert database.sql("SELECT * FROM ranks").fetchall() == [(run, "a", None, 4, True)]
    assert database.sql("SELECT run_id, matrix, format, rank FROM plans").fetchall() == [
        (run, "a", "nf4", None)
    ]


def test_missing_predictions_raise(maker, tmp_path: Path) -> None:
    run = maker.run("B-FP")
    database = open_store(str(tmp_path))
    assert database.sql("SELECT * FROM predictions").fetchall() == []
    with pytest.raises(AnalysisError, match=f"run {run} has no predictions.parquet"):
        read_predictions(database, run)


def test_moved_store_finds_its_artifacts(new_maker, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    maker = new_maker(tmp_path / "old")
    run = maker.classifier("B-FP", [True, False])
    maker.sqlite.close()
    shutil.move(tmp_path / "old", tmp_path / "new home")
    assert len(read_predictions(open_store(str(tmp_path / "new home")), run).fetchall()) == 2


def test_empty_store_has_empty_views(maker, tmp_path: Path) -> None:
    database = open_store(str(tmp_path))
    for view in ("predictions", "ranks", "plans", "specs", "unread"):
        assert database.sql(f"SELECT * FROM {view}").fetchall() == []


def test_artifacts_are_readable_during_a_write_transaction(maker, tmp_path: Path) -> None:
    maker.sqlite.execute("PRAGMA journal_mode=WAL")
    run = maker.classifier("B-FP", [True])
    with sqlite3.connect(tmp_path / "mlflow.db") as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM metrics")
        database = open_store(str(tmp_path))
        assert database.sql("SELECT run_id FROM predictions").fetchall() == [(run,)]
        assert database.sql("SELECT value FROM final_metrics WHERE key = 'eval/acc'").fetchall() == [(1.0,)]
        writer.rollback()


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("/a/b c", "/a/b c"),
        ("file:///a/b%20c", "/a/b c"),
        ("s3://bucket/x", None),
        ("mlflow-artifacts:/1/x", None),
    ],
)
def test_local_folder_of_artifact_uris(uri: str, folder: str | None) -> None:
    assert local_folder(uri, []) == (Path(folder) if folder else None)
