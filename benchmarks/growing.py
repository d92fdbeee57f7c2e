"""Stores of many runs: made by copying rows in SQL, and a line through what was measured of them."""

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
# A copy's id: the first 24 digits of the original's, a mark that no hexadecimal number has, and the number of
# the copy.
_COPY = "substr(run_uuid, 1, 24) || 'x' || :copy"
_ORIGINAL = "substr(run_uuid, 25, 1) <> 'x'"


@dataclass(frozen=True)
class Fit:
    """y = fixed + each · runs. ``off`` is the largest distance of a measured point from it, as a share of the
    point.
    """

    fixed: float
    each: float
    off: float

    def at(self, runs: int) -> float:
        return self.fixed + self.each * runs


def fit(points: Mapping[int, float]) -> Fit:
    """The line through ``points`` (runs → y) that makes relative errors least, Σ ((y − ŷ)/y)². Raises
    ``ValueError`` for fewer than two.
    """
    if len(points) < 2:
        raise ValueError(f"a line needs two sizes or more, got {sorted(points)}; give --runs 100,1000")
    runs, y = np.array(list(points), dtype=float), np.array(list(points.values()))
    each, fixed = np.polyfit(runs, y, 1, w=1 / y)
    return Fit(float(fixed), float(each), float(np.max(np.abs(fixed + each * runs - y) / y)))


def copy_runs(database: str, runs: int) -> None:
    """Fill the store behind the SQLAlchemy URL ``database`` to ``runs`` runs, by copies of those that were
    written into it.

    Copies have ids and spec_ids of their own, and the artifacts of their originals. Raises ``ValueError``
    when there are more already.
    """
    engine = create_engine(database)
    columns = {table: [column["name"] for column in inspect(engine).get_columns(table)] for table in _TABLES}
    with engine.begin() as connection:
        there = connection.execute(text("SELECT count(*) FROM runs")).scalar_one()
        originals = connection.execute(text(f"SELECT count(*) FROM runs WHERE {_ORIGINAL}")).scalar_one()
        if there > runs:
            raise ValueError(
                f"expected at most {runs} runs before copying, found {there}; give larger --runs or fewer --each"
            )
        for copy in range(there // originals, -(-runs // originals)):
            done, upto = max(0, there - copy * originals), min(originals, runs - copy * originals)
            which = f"SELECT run_uuid FROM runs WHERE {_ORIGINAL} ORDER BY run_uuid LIMIT {upto - done} OFFSET {done}"
            chosen = f"run_uuid IN (SELECT run_uuid FROM ({which}) AS originals)"
            for table, names in columns.items():
                values = ", ".join(_value(table, name) for name in names)
                said = f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM {table} WHERE {chosen}"
                connection.execute(text(said), {"copy": f"{copy:07d}"})
    engine.dispose()


def _value(table: str, column: str) -> str:
    if column == "run_uuid":
        return _COPY
    if (table, column) == ("tags", "value"):
        return "CASE WHEN key = 'spec_id' THEN substr(value, 1, 4) || 'x' || :copy || substr(run_uuid, 1, 8) ELSE value END"
    return column


def _file_of(database: str) -> Path:
    from bitrank.tracking.store import Store

    path = Store.parse(database).database
    assert path is not None, "a SQLite store is a file"
    return path


def database_bytes(database: str) -> int:
    """What the tables and indexes of a store take: the SQLite file with its log written back, or what
    Postgres says of the database.
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
    """Measured points and their lines up to the horizon, both axes logarithmic: size, and processor time to
    read.
    """
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
            ": ".join(word for word in name if word),
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
