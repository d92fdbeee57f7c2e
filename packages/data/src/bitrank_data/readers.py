"""Strict readers of CSV, JSON-lines and Parquet files: every row unchanged, or an error that names it.

Values are not converted: a CSV cell is text, and a JSON or Parquet value keeps its type. The ``csv`` module
in strict mode detects unclosed and misplaced quotes, which pandas and pyarrow accept, and does no type
inference.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank_data.errors import DataError

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# UTF-32 first: its little-endian mark begins with the one of UTF-16.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row: number from 1 (without CSV header), line in the file if known, and the two used values.

    A missing value is None.
    """

    number: int
    line: int | None
    text: Any
    label: Any

    @property
    def where(self) -> str:
        """Location of the row for error messages."""
        return f"row {self.number}" if self.line is None else f"row {self.number} (line {self.line})"


@dataclass(frozen=True)
class Table:
    """All rows of a file, all its ``columns`` (for JSON lines those of any row), and ``notes`` on reading."""

    columns: list[str]
    rows: list[Row]
    notes: tuple[str, ...] = ()


def read_table(path: Path, content: bytes) -> Table:
    """Rows of ``content``, parsed by the suffix of ``path``.

    Raises :class:`DataError` with the row and the remedy.
    """
    read = READERS[path.suffix.lower()]
    try:
        return read(path.name, content)
    except DataError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path.name} cannot be read as {path.suffix[1:]}: {error}") from error


def _decoded(name: str, content: bytes) -> tuple[str, tuple[str, ...]]:
    """Text of a file in UTF-8 or in the encoding of its byte-order mark, and notes."""
    encoding = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            begins = f"{name} begins with the mark of {encoding} but is not {encoding}"
            raise DataError(f"{begins}; save it as UTF-8") from error
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name} is not UTF-8: line {line} has the byte {content[error.start]:#04x}. Save it as UTF-8; "
            f"where it is Latin-1: iconv -f LATIN1 -t UTF-8 {name}"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{name}: line {line} has a NUL character; remove it, or save the file as UTF-8 text")
    return text, () if encoding == "utf-8-sig" else (f"read as {encoding.upper()}, by its byte-order mark",)


def _read_csv(name: str, content: bytes) -> Table:
    text, notes = _decoded(name, content)
    if not text.strip():
        expected = "a header, text or text,label, and one line for each example"
        raise DataError(f"{name} has 0 rows: it is empty. Expected {expected}")
    delimiter = _delimiter(text)
    if delimiter != ",":
        notes += (f"fields are separated by {_DELIMITERS[delimiter]}",)
    records = _records(name, text, delimiter)
    _, header = next(records)
    columns = {column: place for place, column in enumerate(header)}
    rows = []
    for number, (line, fields) in enumerate(records, 1):
        if len(fields) != len(header):
            raise DataError(_uneven(name, f"row {number} (line {line})", len(fields), header, delimiter))
        values = [fields[columns[column]] if column in columns else None for column in ("text", "label")]
        rows.append(Row(number, line, *values))
    return Table(header, rows, notes)


def _delimiter(text: str) -> str:
    """Delimiter whose header has the column ``text``; if none, the one that gives the most columns."""
    line = next(line for line in io.StringIO(text) if line.strip())
    headers = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in _DELIMITERS}
    for delimiter, header in headers.items():
        if "text" in header:
            return delimiter
    return max(headers, key=lambda delimiter: len(headers[delimiter]))


def _records(name: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """First line and fields of each record; empty lines are skipped."""
    # A document may exceed the module's default limit of 128 KiB.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number, line = 0, 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where = "the header" if number == 0 else f"row {number} (line {line})"
            raise DataError(f"{name}: {_broken(where, str(error))}") from error
        if fields:
            yield line, fields
            number += 1
        line = reader.line_num + 1


def _broken(where: str, error: str) -> str:
    remedy = 'quote the whole field and double the quotes inside it: "he said ""no"""'
    if "unexpected end of data" in error:
        return f"a quote that opens in {where} is never closed; close it, or {remedy}"
    return f"{where} has a quote out of place ({error}); {remedy}"


def _uneven(name: str, where: str, got: int, header: list[str], delimiter: str) -> str:
    expected = f"expected {len(header)} fields as in the header ({shown(header)}), got {got}"
    if got < len(header):
        return f"{name}: {where}: {expected}. Give the missing field, or remove the row"
    sign = {"\t": "tab"}.get(delimiter, delimiter)
    return f'{name}: {where}: {expected}. Put a field that contains "{sign}" in double quotes'


def _read_jsonl(name: str, content: bytes) -> Table:
    text, notes = _decoded(name, content)
    if not text.strip():
        expected = 'lines such as {"text": "a sentence", "label": 1}'
        raise DataError(f"{name} has 0 rows: it is empty. Expected {expected}")
    columns: dict[str, None] = {}
    rows = []
    for number, (line, value) in enumerate(_objects(name, text), 1):
        where = f"row {number}" if line is None else f"row {number} (line {line})"
        if not isinstance(value, dict):
            expected = '{"text": …, "label": …}'
            raise DataError(f"{name}: {where} is no JSON object but {_kind(value)}; expected {expected}")
        columns.update(dict.fromkeys(value))
        rows.append(Row(number, line, value.get("text"), value.get("label")))
    return Table(list(columns), rows, notes)


def _objects(name: str, text: str) -> Iterable[tuple[int | None, Any]]:
    """Line and value of each row: one JSON value per line, or one array over the whole file.

    Rows of an array have no line.
    """
    if text.lstrip().startswith("["):
        try:
            return [(None, value) for value in json.loads(text, object_pairs_hook=_unique)]
        except json.JSONDecodeError:
            pass  # maybe one array per line: :func:`_lines` parses these
    return _lines(name, text)


def _lines(name: str, text: str) -> Iterator[tuple[int, Any]]:
    # str.splitlines would also split at U+2028, U+0085 and others, which JSON allows inside a text.
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            yield line, json.loads(content, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            where = f"{name} cannot be read as jsonl: line {line}: {error}"
            raise DataError(f"{where}. Write one JSON object a line") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"an object has two values for {key!r}; remove one")
        found[key] = value
    return found


def _read_parquet(name: str, content: bytes) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(content))
    columns = [column for column in file.schema_arrow.names if not column.startswith("__index_level_")]
    used = [column for column in ("text", "label") if column in columns]
    # reading would fail or keep one of the two; the caller raises an error that names the column
    if doubled(columns):
        return Table(columns, [])
    values = file.read(columns=used).to_pydict() if used else {}
    absent = [None] * file.metadata.num_rows
    pairs = zip(values.get("text", absent), values.get("label", absent), strict=True)
    rows = [Row(number, None, text, label) for number, (text, label) in enumerate(pairs, 1)]
    return Table(columns, rows)


def doubled(columns: list[str]) -> list[str]:
    """Used columns (text, label) that occur more than once."""
    return [column for column in ("text", "label") if columns.count(column) > 1]


def shown(columns: list[str]) -> str:
    """Column names for a message; long ones are truncated, since without a header they are data."""
    names = [column if len(column) <= 40 else f"{column[:39]}…" for column in columns[:12]]
    return ", ".join(names + (["…"] if len(columns) > 12 else []))


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


READERS: dict[str, Callable[[str, bytes], Table]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
