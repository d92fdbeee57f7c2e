"""Large stores, made by copying rows in SQL, and linear fits of their measurements."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from harness import FIGURES
from sqlalchemy import create_engine, inspect, text

SIZES, HORIZON = (100, 1000, 5000), 100_000
_TABLES = ("runs", "params", "tags", "latest_metrics", "metrics")
# A copy's id: the first 24 digits of the original's, a letter that is no hexadecimal digit, and the number of
# the copy.
_COPY = "substr(run_uuid, 1, 24) || 'x' || :copy"
_ORIGINAL = "substr(run_uuid, 25, 1) <> 'x'"


@dataclass(frozen=True)
class Fit:
    """y = fixed + each · runs. ``off`` is the largest relative distance of a measured point from the line."""

    fixed: float
    each: float
    off: float

    def at(self, runs: int) -> float:
        return self.fixed + self.each * runs


def fit(points: Mapping[int, float]) -> Fit:
    """The line through ``points`` (runs → y) with the least squared relative errors, Σ ((y − ŷ)/y)².

    Raises ``ValueError`` for fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"a line needs two sizes or more, got {sorted(points)}; give --runs 100,1000")
    runs, y = np.array(list(points), dtype=float), np.array(list(points.values()))
    each, fixed = np.polyfit(runs, y, 1, w=1 / y)
    return Fit(float(fixed), float(each), float(np.max(np.abs(fixed + each * runs - y) / y)))


def copy_runs(database: str, runs: int) -> None:
    """Fill the store at the SQLAlchemy URL ``database`` up to ``runs`` runs, by copying its original runs.

    Copies have new ids and spec_ids, and the artifacts of their originals. Raises ``ValueError`` if the store
    already has more runs.
    """
    engine = create_engine(database)
    columns = {table: [column["name"] for column in inspect(engine).get_columns(table)] for table in _TABLES}
    with engine.begin() as connection:
        there = connection.execute(text("SELECT count(*) FROM runs")).scalar_one()
        originals = connection.execute(text(f"SELECT count(*) FROM runs WHERE {_ORIGINAL}")).scalar_one()
        if there > runs:
            raise ValueError(
                f"expected at most {runs} runs before copying, found {there}; "
                "give larger --runs or fewer --each"
            )
        for copy in range(there // originals, -(-runs // originals)):
            done, upto = max(0, there - copy * originals), min(originals, runs - copy * originals)
            page = f"ORDER BY run_uuid LIMIT {upto - done} OFFSET {done}"
            which = f"SELECT run_uuid FROM runs WHERE {_ORIGINAL} {page}"
            chosen = f"run_uuid IN (SELECT run_uuid FROM ({which}) AS originals)"
            for table, names in columns.items():
                values = ", ".join(_value(table, name) for name in names)
                insert = (
                    f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM {table} WHERE {chosen}"
                )
                connection.execute(text(insert), {"copy": f"{copy:07d}"})
    engine.dispose()


def _value(table: str, column: str) -> str:
    if column == "run_uuid":
        return _COPY
    if (table, column) == ("tags", "value"):
        copied = "substr(value, 1, 4) || 'x' || :copy || substr(run_uuid, 1, 8)"
        return f"CASE WHEN key = 'spec_id' THEN {copied} ELSE value END"
    return column


def _file_of(database: str) -> Path:
    from bitrank.tracking.store import Store

    path = Store.parse(database).database
    assert path is not None, "a SQLite store is a file"
    return path


def database_bytes(database: str) -> int:
    """Size of a store's tables and indexes.

    The SQLite file after a checkpoint of its log, or the size that Postgres reports for the database.
    """
    if database.startswith("sqlite"):
        path = _file_of(database)
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size
    engine = create_engine(database)
    with engine.connect() as connection:
        found = int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    engine.dispose()
    return found


def draw(
    sizes: Mapping[tuple[str, str], Mapping[int, float]], reads: Mapping[tuple[str, str], Mapping[int, float]]
) -> None:
    """Plot measured points and their lines up to the horizon: size, and processor time to read (log-log)."""
    charts = [_panel(sizes, "MiB in the database"), _panel(reads, "CPU seconds to read")]
    chart = (
        alt.hconcat(*charts)
        .configure_view(stroke=None)
        .configure_axis(grid=True, gridOpacity=0.4, labelFontSize=11, titleFontSize=12)
    )
    FIGURES.mkdir(exist_ok=True)
    chart.save(str(FIGURES / "scaling.png"), scale_factor=2)
    chart.save(str(FIGURES / "scaling.svg"))


def _panel(found: Mapping[tuple[str, str], Mapping[int, float]], title: str) -> alt.LayerChart:
    rows: list[dict[str, Any]] = []
    for name, points in found.items():
        label, line, along = (
            ": ".join(part for part in name if part),
            fit(points),
            np.geomspace(min(points), HORIZON, 40),
        )
        rows += [{"of": label, "runs": runs, "y": y, "kind": "measured"} for runs, y in points.items()]
        rows += [{"of": label, "runs": int(runs), "y": line.at(int(runs)), "kind": "line"} for runs in along]
    ticks = alt.Axis(format="~s", values=[100, 1000, 10_000, HORIZON])
    legend = alt.Legend(orient="top", columns=1, labelLimit=300)
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X("runs:Q", title="runs in the store", scale=alt.Scale(type="log"), axis=ticks),
        y=alt.Y("y:Q", title=title, scale=alt.Scale(type="log")),
        color=alt.Color("of:N", title=None, legend=legend),
    )
    lines = base.transform_filter("datum.kind === 'line'").mark_line(strokeDash=[4, 3])
    dots = base.transform_filter("datum.kind === 'measured'").mark_point(filled=True, size=50)
    return alt.layer(lines, dots).properties(width=300, height=260)
