"""Views over the runs' files: what they hold, and what is said of files that cannot be read."""

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


def test_ranks_final_and_over_time(maker, tmp_path: Path) -> None:
    run = maker.run("B-Ada", files={"ranks.json": RANKS})
    rows = open_store(str(tmp_path)).sql("SELECT * FROM ranks ORDER BY step NULLS LAST, matrix").fetchall()
    assert rows == [
        (run, "a", 10, 8, False), (run, "b", 10, 8, False), (run, "a", 20, 4, False), (run, "b", 20, 2, False),
        (run, "a", None, 4, True), (run, "b", None, 2, True),
    ]  # fmt: skip


def test_specs_are_json(maker, tmp_path: Path) -> None:
    run = maker.run("B-FP", files={"spec.json": {"clip": 1.5, "arm": {"rank": {"rank": 8}}}})
    rows = (
        open_store(str(tmp_path))
        .sql("SELECT run_id, spec->>'clip', (spec->'arm'->'rank'->>'rank')::INT FROM specs")
        .fetchall()
    )
    assert rows == [(run, "1.5", 8)]


def test_plans_join_what_was_planned_with_what_was_stored(maker, tmp_path: Path) -> None:
    run = maker.run("Joint-1", files={"plan.json": PLAN})
    rows = open_store(str(tmp_path)).sql("SELECT * FROM plans ORDER BY matrix").fetchall()
    assert rows == [
        (run, "a", "nf4", 8, "nf4@bitsandbytes", "attention", 0, [4, 6], None),
        (run, "b", "bf16", 8, None, None, None, None, None),
        (run, "c", "int8", None, None, None, None, None, None),
    ]


def test_predictions_of_both_kinds_unite_by_name(maker, tmp_path: Path) -> None:
    classifier, model = maker.classifier("B-FP", [True, False]), maker.language_model("B-FP", [3.0], [2])
    database = open_store(str(tmp_path))
    counts = database.sql(
        "SELECT run_id, count(*), sum((label = prediction)::INT), sum(loss), sum(tokens) FROM predictions GROUP BY 1"
    )
    assert sorted(counts.fetchall()) == [(classifier, 2, 1, 1.0, 18), (model, 1, None, 3.0, 2)]


def test_broken_files_and_files_elsewhere_are_said_and_take_nothing_with_them(maker, tmp_path: Path) -> None:
    good = maker.classifier("B-FP", [True, True], files={"ranks.json": RANKS})
    torn = maker.run(
        "B-Q4",
        files={
            "predictions.parquet": "PAR1 torn",
            "ranks.json": '{"final": {"a"',
            "plan.json": "{",
            "spec.json": "[",
        },
    )
    away = maker.run("B-Ada", uri="mlflow-artifacts:/1/abc/artifacts")
    database = open_store(str(tmp_path))
    said = database.sql("SELECT run_id, file FROM unread ORDER BY ALL").fetchall()
    assert said == [
        (torn, "plan.json"),
        (torn, "predictions.parquet"),
        (torn, "ranks.json"),
        (torn, "spec.json"),
        (away, "all"),
    ]
    assert database.sql("SELECT DISTINCT run_id FROM predictions").fetchall() == [(good,)]
    assert database.sql("SELECT DISTINCT run_id FROM ranks").fetchall() == [(good,)]
    with pytest.raises(AnalysisError, match="not on this machine: mlflow-artifacts:/1/abc/artifacts"):
        read_predictions(database, away)
    with pytest.raises(AnalysisError, match="not a whole Parquet file"):
        read_predictions(database, torn)


def test_json_of_another_shape_gives_no_rows(maker, tmp_path: Path) -> None:
    maker.run("B-FP", files={"ranks.json": [1, 2], "plan.json": {"precision": "all nf4", "ranks": None}})
    run = maker.run(
        "B-Ada", files={"ranks.json": {"final": {"a": 4}}, "plan.json": {"precision": {"a": "nf4"}}}
    )
    database = open_store(str(tmp_path))
    assert database.sql("SELECT * FROM ranks").fetchall() == [(run, "a", None, 4, True)]
    assert database.sql("SELECT run_id, matrix, format, rank FROM plans").fetchall() == [
        (run, "a", "nf4", None)
    ]


def test_a_run_without_predictions_says_so(maker, tmp_path: Path) -> None:
    run = maker.run("B-FP")
    database = open_store(str(tmp_path))
    assert database.sql("SELECT * FROM predictions").fetchall() == []
    with pytest.raises(AnalysisError, match=f"run {run} has no predictions.parquet"):
        read_predictions(database, run)


def test_a_store_that_was_moved_finds_its_files(new_maker, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    maker = new_maker(tmp_path / "old")
    run = maker.classifier("B-FP", [True, False])
    maker.sqlite.close()
    shutil.move(tmp_path / "old", tmp_path / "new home")
    assert len(read_predictions(open_store(str(tmp_path / "new home")), run).fetchall()) == 2


def test_an_empty_store_has_empty_views(maker, tmp_path: Path) -> None:
    database = open_store(str(tmp_path))
    for view in ("predictions", "ranks", "plans", "specs", "unread"):
        assert database.sql(f"SELECT * FROM {view}").fetchall() == []


def test_files_appear_while_a_writer_holds_a_transaction(maker, tmp_path: Path) -> None:
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
def test_which_addresses_are_local(uri: str, folder: str | None) -> None:
    assert local_folder(uri, None) == (Path(folder) if folder else None)
