"""Run one SQL query on the store and format its result (``bitrank sql``)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.one_line import one_line
from bitrank_analysis.store import open_store

_MAX_CELL_WIDTH = 60  # characters; csv and json do not truncate
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?(\([^()]*\)\s*)?(?=[A-Za-z(])", re.IGNORECASE)
Tuples = list[tuple[Any, ...]]


def query(uri: str, sql: str, format: str = "table", artifacts: Path | None = None) -> str:
    """Run one ``sql`` statement on the store at ``uri``; the rows as ``table``, ``csv`` or ``json`` text.

    ``artifacts`` is that of :func:`~bitrank_analysis.open_store`.

    Only read statements are allowed: SELECT (and its short forms FROM, VALUES, SHOW, DESCRIBE, SUMMARIZE)
    and EXPLAIN of them. JSON is a list of objects. NULL is empty in a table and in CSV; NaN and infinities
    are ``null`` in JSON, which cannot represent them. Raises :class:`AnalysisError` for an unknown format,
    an unreadable store, any other kind of statement, and SQL that DuckDB rejects.
    """
    if format not in FORMATS:
        raise AnalysisError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    database = open_store(uri, artifacts)
    try:
        check_reads(database, sql)
        result = database.sql(sql)
        if result is None:
            raise AnalysisError("expected a statement that returns rows, such as SELECT * FROM runs")
        return FORMATS[format](result.columns, result.fetchall())
    except duckdb.Error as error:
        raise AnalysisError(
            f"DuckDB cannot run this SQL: {str(error).strip()}\nviews: {', '.join(_views(database))}"
        ) from error


class Rows:
    """The rows of a query, fetched. They are data: nothing can be executed or written through them."""

    def __init__(self, relation: duckdb.DuckDBPyRelation) -> None:
        self._arrow = relation.to_arrow_table()

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order of the query."""
        return list(self._arrow.column_names)

    def df(self) -> pd.DataFrame:
        """The rows as a DataFrame."""
        frame: pd.DataFrame = self._arrow.to_pandas()
        return frame

    def fetchall(self) -> Tuples:
        """The rows as tuples."""
        return list(zip(*(column.to_pylist() for column in self._arrow.columns), strict=True))


class ReadOnlyStore:
    """The views of a store; every statement is checked by :func:`check_reads` before it is executed.

    DuckDB allows writing where it allows reading, so its own connection or relation could overwrite a run's
    artifacts.
    """

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self._database = database

    def sql(self, statement: str) -> Rows:
        """The rows of ``statement``: ``.df()`` is a DataFrame, ``.fetchall()`` a list of tuples.

        Raises :class:`AnalysisError` for any statement that does not only read.
        """
        check_reads(self._database, statement)
        return Rows(self._database.sql(statement))

    def close(self) -> None:
        """Release the connection's memory."""
        self._database.close()


def open_read_only(uri: str, artifacts: Path | None = None) -> ReadOnlyStore:
    """The views of :func:`~bitrank_analysis.open_store`, for statements from outside this program.

    Raises :class:`AnalysisError` if ``uri`` is not a readable MLflow store.
    """
    return ReadOnlyStore(open_store(uri, artifacts))


def check_reads(database: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise :class:`AnalysisError` unless ``sql`` is a single read statement.

    The statement inside EXPLAIN is checked too, because EXPLAIN ANALYZE executes it.
    """
    statements = database.extract_statements(sql)
    if len(statements) != 1:
        raise AnalysisError(
            "expected one statement that returns rows, such as SELECT * FROM runs; "
            f"got {len(statements)} statements"
        )
    explained = _EXPLAIN.match(sql)
    inner = database.extract_statements(sql[explained.end() :]) if explained else statements
    if [statement.type for statement in inner] != [duckdb.StatementType.SELECT]:
        kinds = ", ".join(statement.type.name for statement in inner) or "nothing"
        raise AnalysisError(
            f"SQL can only read the store: expected SELECT, DESCRIBE or EXPLAIN of a SELECT, got {kinds}"
        )


def _views(database: duckdb.DuckDBPyConnection) -> list[str]:
    names = database.execute(
        "SELECT view_name FROM duckdb_views() WHERE NOT internal AND schema_name = 'main' ORDER BY 1"
    ).fetchall()
    return [name for (name,) in names]


def _table(columns: list[str], rows: Tuples) -> str:
    cells = [list(map(_cell, row)) for row in rows]
    heads = list(map(one_line, columns))
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    numeric = [_has_number(rows, index) for index in range(len(columns))]
    lines = [heads, ["─" * width for width in widths], *cells]
    return "".join(_line(line, widths, numeric) + "\n" for line in lines)


def _has_number(rows: Tuples, index: int) -> bool:
    return any(isinstance(row[index], int | float | Decimal) for row in rows)


def _line(cells: list[str], widths: list[int], numeric: list[bool]) -> str:
    """One row of the table; numbers are aligned to the right."""
    padded = [
        text.rjust(width) if right else text.ljust(width)
        for text, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "  ".join(padded).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else one_line(str(value))
    return text if len(text) <= _MAX_CELL_WIDTH else text[: _MAX_CELL_WIDTH - 1] + "…"


def _csv(columns: list[str], rows: Tuples) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def _json(columns: list[str], rows: Tuples) -> str:
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        # An object has one value for a name; the others would be lost.
        raise AnalysisError(
            f"expected different names of columns for JSON, got {', '.join(repeated)} more than once; "
            "name them apart with AS, or take csv"
        )
    records = [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]
    return json.dumps(records, indent=1, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """``value`` as a type that JSON can represent."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value if value is None or isinstance(value, bool | int | str) else str(value)


FORMATS: dict[str, Callable[[list[str], Tuples], str]] = {"table": _table, "csv": _csv, "json": _json}
