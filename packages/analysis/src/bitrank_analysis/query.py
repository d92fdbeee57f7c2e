"""One question in SQL to the store, answered as text: what ``bitrank sql`` prints."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import duckdb

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.store import open_store

_WIDEST = 60  # characters of one cell in a table; csv and json keep all
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?(\([^()]*\)\s*)?(?=[A-Za-z(])", re.IGNORECASE)
Rows = list[tuple[Any, ...]]


def query(uri: str, sql: str, format: str = "table") -> str:
    """The answer of the store at ``uri`` to one ``sql`` statement, as ``table``, ``csv`` or ``json`` (a list
    of objects).

    Only statements that read are run: SELECT (and its short forms FROM, VALUES, SHOW, DESCRIBE, SUMMARIZE)
    and EXPLAIN of them. NULL is empty in a table and in CSV; NaN and infinities are ``null`` in JSON, which
    has no word for them. Raises :class:`AnalysisError` on an unknown format, a store that cannot be read, any
    other kind of statement, and SQL that DuckDB refuses.
    """
    if format not in FORMATS:
        raise AnalysisError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    database = open_store(uri)
    try:
        check_reads(database, sql)
        answer = database.sql(sql)
        if answer is None:
            raise AnalysisError("expected a statement that answers with rows, such as SELECT * FROM runs")
        return FORMATS[format](answer.columns, answer.fetchall())
    except duckdb.Error as error:
        said = str(error).strip()
        raise AnalysisError(
            f"the store does not understand this SQL: {said}\nviews: {', '.join(_views(database))}"
        ) from error


def check_reads(database: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise :class:`AnalysisError` unless ``sql`` is one statement that reads; EXPLAIN ANALYZE runs its
    statement, so that is checked.
    """
    statements = database.extract_statements(sql)
    if len(statements) != 1:
        raise AnalysisError(
            f"expected a statement that answers with rows, such as SELECT * FROM runs; got {len(statements)} statements"
        )
    explained = _EXPLAIN.match(sql)
    inner = database.extract_statements(sql[explained.end() :]) if explained else statements
    if [statement.type for statement in inner] != [duckdb.StatementType.SELECT]:
        kinds = ", ".join(statement.type.name for statement in inner) or "nothing"
        raise AnalysisError(
            f"the store is read-only here: expected SELECT, DESCRIBE or EXPLAIN of a SELECT, got {kinds}"
        )


def _views(database: duckdb.DuckDBPyConnection) -> list[str]:
    names = database.execute(
        "SELECT view_name FROM duckdb_views() WHERE NOT internal AND schema_name = 'main' ORDER BY 1"
    ).fetchall()
    return [name for (name,) in names]


def _table(columns: list[str], rows: Rows) -> str:
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    numeric = [any(isinstance(row[n], int | float | Decimal) for row in rows) for n in range(len(columns))]
    lines = [columns, ["─" * width for width in widths], *cells]
    return (
        "\n".join(
            "  ".join(_aligned(*item) for item in zip(line, widths, numeric, strict=True)).rstrip()
            for line in lines
        )
        + "\n"
    )


def _aligned(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value).replace("\n", " ")
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _csv(columns: list[str], rows: Rows) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def _json(columns: list[str], rows: Rows) -> str:
    return (
        json.dumps(
            [dict(zip(columns, map(_plain, row), strict=True)) for row in rows], indent=1, ensure_ascii=False
        )
        + "\n"
    )


def _plain(value: Any) -> Any:
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


FORMATS: dict[str, Callable[[list[str], Rows], str]] = {"table": _table, "csv": _csv, "json": _json}
