"""SQL queries on the store: formats of the result, and statements that are rejected."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import duckdb
import pytest
from bitrank_analysis import AnalysisError, open_read_only, open_store, query

SQL = 'SELECT run_name AS name, "m.eval/acc" AS acc, NULL AS none FROM wide ORDER BY 1'


@pytest.fixture
def uri(maker, tmp_path: Path) -> str:
    maker.run("B-FP", metrics={"eval/acc": 0.875})
    maker.run('B, "Q4"', metrics={"eval/acc": float("nan")})
    return str(tmp_path)


def test_table_columns_are_aligned(uri: str) -> None:
    assert query(uri, SQL).splitlines() == [
        "name                 acc  none",
        "─────────────────  ─────  ────",
        'B, "Q4" movies s0    nan',
        "B-FP movies s0     0.875",
    ]


def test_control_characters_in_a_table_are_shown(uri: str) -> None:
    sql = "SELECT chr(27) || '[2Jx' || chr(13) || chr(10) || 'y' || chr(155) AS text"
    assert query(uri, sql).splitlines()[2] == r"\x1b[2Jx  y\x9b"


def test_csv_reads_back(uri: str) -> None:
    rows = list(csv.reader(io.StringIO(query(uri, SQL, "csv"))))
    assert rows == [
        ["name", "acc", "none"],
        ['B, "Q4" movies s0', "nan", ""],
        ["B-FP movies s0", "0.875", ""],
    ]


def test_json_reads_back_and_has_no_nan(uri: str) -> None:
    assert json.loads(query(uri, SQL, "json"), parse_constant=pytest.fail) == [
        {"name": 'B, "Q4" movies s0', "acc": None, "none": None},
        {"name": "B-FP movies s0", "acc": 0.875, "none": None},
    ]
    nested = query(uri, "SELECT started, [1.5, 'nan'::DOUBLE] AS l FROM runs LIMIT 1", "json")
    assert json.loads(nested)[0]["l"] == [1.5, None]


def test_json_refuses_columns_of_one_name_instead_of_losing_values(uri: str) -> None:
    with pytest.raises(AnalysisError, match="got x more than once; name them apart with AS"):
        query(uri, "SELECT 1 AS x, 2 AS x, 3 AS y", "json")


def test_json_keeps_types_and_nesting(uri: str) -> None:
    sql = (
        "SELECT 1.5 AS d, true AS b, sum(2) AS s, {'k': [1, NULL]} AS n, MAP {'a': 1} AS m, "
        "DATE '2026-11-23' AS t"
    )
    assert json.loads(query(uri, sql, "json")) == [
        {"d": 1.5, "b": True, "s": 2, "n": {"k": [1, None]}, "m": {"a": 1}, "t": "2026-11-23"}
    ]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", "syntax error.*views: .*wide"),
        ("SELECT * FROM songs", "songs does not exist"),
        ("", "expected one statement"),
        ("SELECT 1 + 'x'::INTEGER", "cannot run this SQL"),
    ],
)
def test_invalid_sql_raises_with_the_reason(uri: str, sql: str, message: str) -> None:
    with pytest.raises(AnalysisError, match=f"(?s){message}"):
        query(uri, sql)


def test_unknown_format_raises_with_the_known_formats(uri: str) -> None:
    with pytest.raises(AnalysisError, match="unknown format 'xml'; expected one of table, csv, json"):
        query(uri, "SELECT 1", "xml")


def test_no_statement_reads_or_writes_another_file(uri: str, tmp_path: Path) -> None:
    secret = tmp_path.parent / "secret.txt"
    secret.write_text("secret")
    store = (tmp_path / "mlflow.db").read_bytes()
    for sql in (
        f"SELECT * FROM read_text('{secret}')",
        f"SELECT * FROM read_text('{tmp_path}/artifacts/../../secret.txt')",
        f"SELECT * FROM read_blob('{tmp_path}/mlflow.db')",
        f"SELECT * FROM glob('{tmp_path.parent}/*')",
        f"COPY (SELECT 1) TO '{tmp_path}/mlflow.db' (USE_TMP_FILE false)",
        f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{tmp_path}/mlflow.db' (USE_TMP_FILE false)",
        f"EXPLAIN /* */ ANALYZE COPY (SELECT 1) TO '{tmp_path}/artifacts/new.csv'",
        f"ATTACH '{tmp_path}/mlflow.db' AS other",
        f"EXPORT DATABASE '{tmp_path}/out'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "CREATE TABLE t AS SELECT 1",
        "SELECT 1; COPY (SELECT 1) TO 'x.csv'",
    ):
        with pytest.raises(AnalysisError):
            query(uri, sql)
    assert (tmp_path / "mlflow.db").read_bytes() == store
    assert sorted(path.name for path in tmp_path.iterdir() if path.name in {"out", "new.csv"}) == []


def test_every_kind_of_read_statement_is_allowed(uri: str) -> None:
    for sql in (
        "DESCRIBE runs",
        "SHOW TABLES",
        "SUMMARIZE SELECT 1 AS a",
        "FROM runs",
        "WITH a AS (SELECT 1 AS b) SELECT * FROM a",
        "EXPLAIN SELECT * FROM runs",
        "explain analyze SELECT * FROM runs",
        "EXPLAIN (SELECT 1)",
    ):
        assert query(uri, sql)


def test_connection_cannot_open_other_files_or_change_settings(uri: str, tmp_path: Path) -> None:
    database = open_store(uri)
    outside = tmp_path / "outside.csv"
    with pytest.raises(duckdb.PermissionException):
        database.execute(f"COPY (SELECT 1) TO '{outside}'")
    with pytest.raises(duckdb.InvalidInputException):
        database.execute("SET enable_external_access = true")
    assert not outside.exists()


def test_read_only_store_reads_and_refuses_to_write_artifacts(uri: str, tmp_path: Path) -> None:
    """DuckDB itself would write into the folder of artifacts, which it may read."""
    store = open_read_only(uri)
    assert store.sql("SELECT count(*) FROM runs").fetchall()[0][0] > 0
    victims = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    target = tmp_path / "artifacts/new.parquet"
    for statement in (f"COPY (SELECT 1) TO '{target}'", "CREATE TABLE t AS SELECT 1", "SELECT 1; SELECT 2"):
        with pytest.raises(AnalysisError, match="expected"):
            store.sql(statement)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == victims
    rows = store.sql("SELECT run_name, 1 AS one FROM runs ORDER BY 1")
    assert rows.columns == ["run_name", "one"] and rows.df()["one"].tolist() == [1, 1]
    assert rows.fetchall()[1] == ("B-FP movies s0", 1)
    assert not {"query", "write_parquet", "to_parquet", "write_csv", "create"} & set(dir(rows))
    store.close()
