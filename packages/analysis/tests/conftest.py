"""A fixture that fills a real SQLite store in MLflow's schema, with artifacts, run by run."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

# The columns of MLflow 3.17's tables that the package reads.
SCHEMA = """
CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT, lifecycle_stage TEXT);
CREATE TABLE runs (run_uuid TEXT PRIMARY KEY, name TEXT, status TEXT, start_time INTEGER, end_time INTEGER,
                   lifecycle_stage TEXT, artifact_uri TEXT, experiment_id INTEGER);
CREATE TABLE params (run_uuid TEXT, key TEXT, value TEXT);
CREATE TABLE tags (run_uuid TEXT, key TEXT, value TEXT);
CREATE TABLE metrics (run_uuid TEXT, key TEXT, step INTEGER, timestamp INTEGER, value REAL,
                      is_nan BOOLEAN);
"""


class StoreMaker:
    """Adds runs to ``folder/mlflow.db`` and their files to ``folder/artifacts``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.sqlite = sqlite3.connect(folder / "mlflow.db")
        self.sqlite.executescript(SCHEMA)

    def run(
        self,
        config: str,
        task: str = "movies",
        seed: int = 0,
        metrics: Mapping[str, float] | None = None,
        predictions: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        files: Mapping[str, Any] | None = None,
        status: str = "FINISHED",
        experiment: str = "bitrank-test",
        uri: str | None = None,
    ) -> str:
        """Add one run, started after all earlier ones, and return its id.

        A tag with the value "" is left out. ``files`` maps a name to text or to a value to write as JSON.
        """
        self.count += 1
        run_id = f"{self.count:032x}"
        folder = self.folder / "artifacts" / experiment / run_id / "artifacts"
        folder.mkdir(parents=True)
        all_tags = {
            "config": config,
            "task": task,
            "seed": str(seed),
            "model": "tiny",
            "code": "c1",
            "hardware": "a machine",
            **(tags or {}),
        }
        row = (
            run_id,
            f"{config} {task} s{seed}",
            status,
            self.count * 1000,
            self.count * 1000 + 500,
            "active",
            uri or str(folder),
        )
        self.sqlite.execute(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, self._experiment(experiment))
        )
        self.sqlite.executemany(
            "INSERT INTO tags VALUES (?, ?, ?)",
            [(run_id, key, value) for key, value in all_tags.items() if value],
        )
        self.sqlite.executemany(
            "INSERT INTO params VALUES (?, ?, ?)",
            [(run_id, key, value) for key, value in (params or {}).items()],
        )
        points = [
            (run_id, key, 0, 1, 0.0 if value != value else value, value != value)
            for key, value in (metrics or {}).items()
        ]
        self.sqlite.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", points)
        self.sqlite.commit()
        if predictions is not None:
            pq.write_table(pa.table(dict(predictions)), folder / "predictions.parquet")
        for name, content in (files or {}).items():
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return run_id

    def classifier(self, config: str, right: list[bool], ids: list[str] | None = None, **options: Any) -> str:
        """A finished classification run; ``right`` marks the examples that are predicted correctly."""
        n = len(right)
        rows = {
            "id": ids or [f"e{i}" for i in range(n)],
            "label": [i % 2 for i in range(n)],
            "loss": [0.5] * n,
            "tokens": [9] * n,
        }
        rows["prediction"] = [i % 2 if ok else 1 - i % 2 for i, ok in enumerate(right)]
        options = {
            "metrics": {
                "eval/acc": sum(right) / n,
                "zero/acc": 0.5,
                "model/mib": 10.0,
                "lora/mib": 0.0,
                "mem/peak_mib": 100.0,
            },
            **options,
        }
        return self.run(config, predictions=rows, **options)

    def language_model(
        self, config: str, nats: list[float], tokens: list[int], ids: list[str] | None = None, **options: Any
    ) -> str:
        """A finished language-modelling run with these losses, one row per window."""
        import math

        rows = {
            "id": ids or [f"d{i}" for i in range(len(nats))],
            "loss": nats,
            "tokens": tokens,
            "right": [0] * len(nats),
        }
        options = {
            "metrics": {
                "eval/ppl": math.exp(sum(nats) / sum(tokens)),
                "model/mib": 10.0,
                "lora/mib": 0.0,
                "mem/peak_mib": 100.0,
            },
            "task": "wiki",
            **options,
        }
        return self.run(config, predictions=rows, **options)

    def _experiment(self, name: str) -> int:
        found = self.sqlite.execute("SELECT experiment_id FROM experiments WHERE name = ?", [name]).fetchone()
        if found is None:
            insert = (
                "INSERT INTO experiments (name, lifecycle_stage) VALUES (?, 'active') RETURNING experiment_id"
            )
            found = self.sqlite.execute(insert, [name]).fetchone()
        return int(found[0])


@pytest.fixture
def maker(tmp_path: Path) -> StoreMaker:
    return StoreMaker(tmp_path)


@pytest.fixture(scope="session")
def new_maker() -> Callable[[Path], StoreMaker]:
    """The class itself, for tests that need several stores."""
    return StoreMaker


# A busy machine exceeds any deadline of an example; no test depends on the time it takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
