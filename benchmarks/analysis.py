"""Time to open a store as views: ``open_store`` and one query, against ``mlflow.search_runs`` if installed.

    python benchmarks/analysis.py [--rounds 5] [--small]

Two stores with MLflow's tables and keys are created in a temporary folder: one of few long runs, one of many
short ones. The contestants alternate in one process. ``search_runs`` returns final metrics only, so it does
less work than ours. Median and range go into section `analysis` of RESULTS.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bitrank_analysis import open_store
from harness import RESULTS, paired_ratio, spread, table, write_section

KEYS = ("train/loss", "train/lr", "train/grad_norm", "train/rank", "val/loss")
# The tables and keys of MLflow 3.17 that ours reads, and `latest_metrics`, which search_runs reads.
SCHEMA = """
CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT, lifecycle_stage TEXT);
CREATE TABLE runs (run_uuid TEXT PRIMARY KEY, name TEXT, status TEXT, start_time INTEGER, end_time INTEGER,
                   lifecycle_stage TEXT, artifact_uri TEXT, experiment_id INTEGER, user_id TEXT);
CREATE TABLE params (run_uuid TEXT, key TEXT, value TEXT, PRIMARY KEY (key, run_uuid));
CREATE TABLE tags (run_uuid TEXT, key TEXT, value TEXT, PRIMARY KEY (key, run_uuid));
CREATE TABLE metrics (run_uuid TEXT, key TEXT, step INTEGER, timestamp INTEGER, value REAL, is_nan BOOLEAN,
                      PRIMARY KEY (key, timestamp, step, run_uuid, value, is_nan));
CREATE TABLE latest_metrics (run_uuid TEXT, key TEXT, step INTEGER, timestamp INTEGER, value REAL,
                             is_nan BOOLEAN, PRIMARY KEY (key, run_uuid));
"""
QUERY = 'SELECT count(*), sum("m.train/loss") FROM wide'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", "--repeats", dest="repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tenth of the runs, as a smoke test")
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="file whose section is replaced (default: benchmarks/RESULTS.md)",
    )
    arguments = parser.parse_args()
    rows = []
    for runs, points in ((200, 2500), (10_000, 50)):
        with tempfile.TemporaryDirectory() as folder:
            count = runs // 10 if arguments.small else runs
            rows.append(compare(Path(folder), count, points, arguments.repeats))
    shown = table(("store", "ours s", "mlflow.search_runs s", "search_runs ÷ ours"), rows)
    note = (
        f"Median (range) over {arguments.repeats} repeats in one process, on one core. "
        "search_runs gives final metrics only."
    )
    write_section("analysis", f"## Opening a store\n\n{shown}\n\n{note}", arguments.results)


def compare(folder: Path, runs: int, points: int, repeats: int) -> list[str]:
    """One table row for a store of ``runs`` runs with ``points`` points each."""
    peer = _mlflow(folder)
    fill(folder / "mlflow.db", runs, points, made=peer is not None)
    contestants: dict[str, Callable[[], int]] = {"bitrank_analysis": lambda: ours(folder)}
    if peer is not None:
        contestants["mlflow.search_runs"] = peer
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            init = time.perf_counter()
            found = contestant()
            times[name].append(time.perf_counter() - init)
            assert found == runs, f"{name} found {found} runs of {runs}"
    mine, *others = times.values()
    compared = (
        [spread(others[0]).text(), paired_ratio(others[0], mine).text()] if others else ["not installed", "–"]
    )
    return [f"{runs:,} runs × {points:,} points ({len(KEYS)} keys)", spread(mine).text(3), *compared]


def ours(folder: Path) -> int:
    """Open the store and query the widest view; return the number of runs."""
    with open_store(str(folder)) as database:
        return int(database.sql(QUERY).fetchall()[0][0])


def _mlflow(folder: Path) -> Callable[[], int] | None:
    """A search for all runs by MLflow, in a store that MLflow created in ``folder``; None without MLflow."""
    if importlib.util.find_spec("mlflow") is None:
        print("mlflow is not installed: ours alone is timed")
        return None
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = mlflow.create_experiment("bench", artifact_location=str(folder / "artifacts"))

    def search() -> int:
        return len(mlflow.search_runs([experiment], max_results=1_000_000))

    return search


def fill(path: Path, runs: int, points: int, made: bool) -> None:
    """Write ``runs`` runs with ``points`` metric points, 10 params and 12 tags each to the store ``path``."""
    with sqlite3.connect(path) as database:
        if not made:
            database.executescript(SCHEMA)
            database.execute("INSERT INTO experiments VALUES (1, 'bench', 'active')")
        experiment = database.execute(
            "SELECT experiment_id FROM experiments WHERE name = 'bench'"
        ).fetchone()[0]
        ids = [f"{n:032x}" for n in range(runs)]
        database.executemany(
            "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, artifact_uri, "
            "experiment_id, user_id) VALUES (?, ?, 'FINISHED', ?, ?, 'active', ?, ?, 'bench')",
            [
                (run, f"run {n}", n, n + 1000, f"{path.parent}/artifacts/{run}/artifacts", experiment)
                for n, run in enumerate(ids)
            ],
        )
        database.executemany(
            "INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)",
            [(run, f"param{k}", str(k)) for run in ids for k in range(10)],
        )
        database.executemany(
            "INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)",
            [(run, f"tag{k}", f"value {k}") for run in ids for k in range(12)],
        )
        columns, steps = (
            "(run_uuid, key, step, timestamp, value, is_nan) VALUES (?, ?, ?, ?, ?, 0)",
            points // len(KEYS),
        )
        rows = (
            (run, key, step, step * 1000, 1 / (step + 1))
            for key in KEYS
            for run in ids
            for step in range(steps)
        )
        database.executemany(f"INSERT INTO metrics {columns}", rows)
        last = ((run, key, steps - 1, steps * 1000, 1 / steps) for key in KEYS for run in ids)
        database.executemany(f"INSERT INTO latest_metrics {columns}", last)


if __name__ == "__main__":
    main()
