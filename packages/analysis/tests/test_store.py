"""The views against a SQLite file with MLflow's tables, compared with sqlite3's own counts and sums."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import pytest
from bitrank_analysis import AnalysisError, open_store

# The columns of MLflow 3.17's tables that the package reads.
_SCHEMA = """
CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT, lifecycle_stage TEXT);
CREATE TABLE runs (run_uuid TEXT PRIMARY KEY, name TEXT, status TEXT, start_time INTEGER, end_time INTEGER,
                   lifecycle_stage TEXT, artifact_uri TEXT, experiment_id INTEGER);
CREATE TABLE params (run_uuid TEXT, key TEXT, value TEXT);
CREATE TABLE tags (run_uuid TEXT, key TEXT, value TEXT);
CREATE TABLE metrics (run_uuid TEXT, key TEXT, step INTEGER, timestamp INTEGER, value REAL,
                      is_nan BOOLEAN);
"""


@pytest.fixture
def store(tmp_path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(tmp_path / "mlflow.db")
    database.executescript(_SCHEMA)
    return database


@pytest.fixture
def filled(store: sqlite3.Connection) -> sqlite3.Connection:
    store.executemany(
        "INSERT INTO experiments VALUES (?, ?, ?)", [(1, "bitrank-laptop", "active"), (2, "gone", "deleted")]
    )
    runs = [
        (
            f"r{n}",
            f"run {n}",
            "FINISHED" if n % 2 else "RUNNING",
            1000,
            61000 if n % 2 else None,
            "active",
            "/a",
            1,
        )
        for n in range(1500)
    ]
    runs += [
        ("dead", "x", "FINISHED", 1, 2, "deleted", "/a", 1),
        ("other", "y", "FINISHED", 1, 2, "active", "/a", 2),
    ]
    store.executemany("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", runs)
    store.executemany(
        "INSERT INTO params VALUES (?, 'seed', ?)", [(run[0], str(n)) for n, run in enumerate(runs)]
    )
    # More leading NULLs than one batch of the driver, then text.
    store.executemany(
        "INSERT INTO tags VALUES (?, 'cell', ?)",
        [(run[0], None if n < 1400 else "B-FP · x") for n, run in enumerate(runs)],
    )
    points = [
        (f"r{n}", "train/loss", step, 1000 + step, n / 7 + step, 0) for n in range(1500) for step in range(3)
    ]
    points += [("dead", "train/loss", 0, 1, 1e9, 0), ("other", "train/loss", 0, 1, 1e9, 0)]
    store.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", points)
    store.commit()
    return store


def test_counts_and_sums_per_key_equal_those_of_sqlite(filled: sqlite3.Connection, tmp_path: Path) -> None:
    expected = filled.execute(
        "SELECT key, count(*), sum(value) FROM metrics WHERE run_uuid NOT IN ('dead', 'other') "
        "GROUP BY key ORDER BY key"
    ).fetchall()
    query = "SELECT key, count(*), sum(value) FROM metrics GROUP BY key ORDER BY key"
    got = open_store(str(tmp_path)).sql(query).fetchall()
    assert [(key, count) for key, count, _ in got] == [(key, count) for key, count, _ in expected]
    assert [total for *_, total in got] == pytest.approx([total for *_, total in expected])


def test_deleted_runs_and_experiments_are_left_out(filled: sqlite3.Connection, tmp_path: Path) -> None:
    database = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert database.sql("SELECT count(*), count(seconds), max(seconds) FROM runs").fetchall() == [
        (1500, 750, 60.0)
    ]
    assert database.sql("SELECT count(*) FROM params").fetchall() == [(1500,)]
    assert database.sql(
        'SELECT count(*), count("m.train/loss") FROM wide WHERE "t.cell" = \'B-FP · x\''
    ).fetchall() == [(100, 100)]


def test_nan_infinities_and_repeated_steps_are_restored(store: sqlite3.Connection, tmp_path: Path) -> None:
    store.execute("INSERT INTO experiments VALUES (1, 'e', 'active')")
    store.execute("INSERT INTO runs VALUES ('r', 'n', 'FINISHED', 1, 2, 'active', '/a', 1)")
    huge = 1.7976931348623157e308
    points = [
        ("nan", 0, 1, 0.0, 1),
        ("up", 0, 1, huge, 0),
        ("down", 0, 1, -huge, 0),
        ("twice", 5, 1, 1.0, 0),
        ("twice", 5, 9, 2.0, 0),
        ("twice", 4, 99, 7.0, 0),
    ]
    store.executemany("INSERT INTO metrics VALUES ('r', ?, ?, ?, ?, ?)", points)
    store.commit()
    database = open_store(str(tmp_path))
    values = dict(database.sql("SELECT key, value FROM final_metrics").fetchall())
    assert math.isnan(values.pop("nan"))
    assert values == {"up": math.inf, "down": -math.inf, "twice": 2.0}
    assert database.sql("SELECT count(*) FROM metrics WHERE key = 'twice'").fetchall() == [(2,)]


def test_empty_store_gives_empty_views(store: sqlite3.Connection, tmp_path: Path) -> None:
    database = open_store(str(tmp_path))
    for view in ("runs", "params", "tags", "metrics", "final_metrics", "wide"):
        assert database.sql(f"SELECT * FROM {view}").fetchall() == []


def test_store_is_readable_during_a_write_transaction(filled: sqlite3.Connection, tmp_path: Path) -> None:
    filled.execute("PRAGMA journal_mode=WAL")
    filled.execute("INSERT INTO metrics VALUES ('r0', 'open', 0, 0, 1.0, 0)")  # not committed
    assert open_store(str(tmp_path)).sql("SELECT count(*) FROM metrics WHERE key = 'open'").fetchall() == [
        (0,)
    ]


def test_invalid_store_raises(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="there is no store at"):
        open_store(str(tmp_path))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(AnalysisError, match="is no MLflow store"):
        open_store(str(tmp_path))
    with pytest.raises(AnalysisError, match=r"expected a folder.*mysql"):
        open_store("mysql://x/y")
