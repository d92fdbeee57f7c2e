"""Archive members become Parquet tables: only those that a table names, in one pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bitrank_data import DataError
from bitrank_data.tables import Row, Table, Tables, read_table


def rows_of_lines(path: str, content: bytes) -> list[Row]:
    return [{"path": path, "line": line, "words": line.split()} for line in content.decode().splitlines()]


COLUMNS = {"path": "string", "line": "string", "words": "list<string>"}
FILES = {"p/a.txt": b"one two\nthree", "p/b.txt": b"four", "p/c.json": json.dumps([1]).encode()}


@pytest.mark.parametrize("make", ["tar_of", "zip_of"])
def test_matching_members_are_rows_of_one_file(
    tmp_path: Path, make: str, request: pytest.FixtureRequest
) -> None:
    archive = tmp_path / "archive"
    request.getfixturevalue(make)(FILES, archive)
    Tables({"lines.parquet": Table(r"\.txt$", rows_of_lines, COLUMNS)}).extract([archive], tmp_path)
    assert read_table(tmp_path / "lines.parquet") == [
        {"path": "p/a.txt", "line": "one two", "words": ["one", "two"]},
        {"path": "p/a.txt", "line": "three", "words": ["three"]},
        {"path": "p/b.txt", "line": "four", "words": ["four"]},
    ]


def test_table_without_a_member_is_a_changed_layout(tmp_path: Path, tar_of) -> None:
    tar_of(FILES, tmp_path / "archive")
    tables = Tables({"lines.parquet": Table(r"\.csv$", rows_of_lines, COLUMNS)})
    with pytest.raises(DataError, match=r"no member of archive matches \\\.csv\$; .* changed its layout"):
        tables.extract([tmp_path / "archive"], tmp_path)


def test_version_changes_with_layout_and_is_otherwise_stable() -> None:
    table = Table(r"\.txt$", rows_of_lines, COLUMNS)
    version = Tables({"lines.parquet": table}).version
    assert version == Tables({"lines.parquet": replace(table)}).version
    assert version != Tables({"lines.parquet": replace(table, pattern="x")}).version
    assert version != Tables({"lines.parquet": replace(table, columns={"path": "string"})}).version
