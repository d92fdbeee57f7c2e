"""Strict reader of CSV and TSV files: every cell unchanged, or an error that names its row.

The ``csv`` module in strict mode detects unclosed and misplaced quotes, which pandas and pyarrow accept, and
does no type inference.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from pathlib import Path

from bitrank_data.errors import DataError
from bitrank_data.rows import Row, Table, encoding_of, lines_of, place_of, shown

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def open_csv(path: Path, known: Collection[str]) -> Table:
    """Table of a file whose delimiter follows from its header.

    The delimiter is the one that gives the most columns with ``known`` names, then the most columns.
    """
    line = _header_line(path)
    _allow_long_fields(path)
    headers = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in _DELIMITERS}

    def fit(delimiter: str) -> tuple[int, int]:
        return len(set(headers[delimiter]) & set(known)), len(headers[delimiter])

    return _table(path, max(headers, key=fit))


def open_tsv(path: Path, known: Collection[str]) -> Table:
    """Table of a file whose fields are separated by tabs."""
    _header_line(path)
    return _table(path, "\t")


def _header_line(path: Path) -> str:
    for line in lines_of(path, newline=""):
        if line.strip():
            return line
    expected = "a header, such as text or text,label, and one line for each example"
    raise DataError(f"{path.name} has 0 rows: it is empty. Expected {expected}")


def _table(path: Path, delimiter: str) -> Table:
    _, notes = encoding_of(path)
    if delimiter != "," and path.suffix.lower() == ".csv":
        notes += (f"fields are separated by {_DELIMITERS[delimiter]}",)
    _, header = next(_records(path, delimiter))

    def rows(used: Collection[str]) -> Iterator[Row]:
        places = {column: place for place, column in enumerate(header) if column in used}
        records = _records(path, delimiter)
        next(records)
        for number, (line, fields) in enumerate(records, 1):
            if len(fields) != len(header):
                where = place_of(number, line)
                raise DataError(_uneven(path.name, where, len(fields), header, delimiter))
            yield Row(number, line, {column: fields[place] for column, place in places.items()})

    return Table(header, rows, notes)


def _allow_long_fields(path: Path) -> None:
    """Raise the limit of the module csv, 128 KiB, which a document may exceed."""
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size + 1))


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """First line and fields of each record; empty lines are skipped."""
    _allow_long_fields(path)
    reader = csv.reader(lines_of(path, newline=""), delimiter=delimiter, strict=True)
    number, line = 0, 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where = "the header" if number == 0 else place_of(number, line)
            raise DataError(f"{path.name}: {_broken(where, str(error))}") from error
        is_header = number == 0
        if any(map(str.strip, fields)) if is_header else fields:
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
