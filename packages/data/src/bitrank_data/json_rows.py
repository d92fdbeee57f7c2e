"""Strict reader of JSON: one object a line, or one array of objects over the whole file."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bitrank_data.errors import DataError
from bitrank_data.rows import Row, Table, encoding_of, lines_of, pieces_of, place_of, quoted

_FIRST_PIECE = 1 << 16  # characters of an array that are parsed at once; more for a longer object


def open_json(path: Path, known: Collection[str]) -> Table:
    """Table of a file of JSON lines or of one JSON array.

    The file is read once here, because any row may have a column that the others lack.
    """
    _, notes = encoding_of(path)
    columns: dict[str, None] = {}
    count = 0
    for _, _, value in _objects(path):
        columns.update(dict.fromkeys(value))
        count += 1
    if not count and not any(line.strip() for line in lines_of(path, newline="\n")):
        expected = 'lines such as {"text": "a sentence", "label": 1}'
        raise DataError(f"{path.name} has 0 rows: it is empty. Expected {expected}")

    def rows(used: Collection[str]) -> Iterator[Row]:
        for number, line, value in _objects(path):
            yield Row(number, line, {column: value[column] for column in used if column in value})

    return Table(list(columns), rows, notes)


def _objects(path: Path) -> Iterator[tuple[int, int | None, dict[str, Any]]]:
    """Number, line and value of each row; rows of an array have no line."""
    values = _items(path) if _is_array(path) else _lines(path)
    for number, (line, value) in enumerate(values, 1):
        if not isinstance(value, dict):
            problem = f"{place_of(number, line)} is no JSON object but {_kind(value)}"
            raise DataError(f'{path.name}: {problem}; expected {{"text": …, "label": …}}')
        yield number, line, value


def _is_array(path: Path) -> bool:
    """Whether the file is one array: it begins with ``[``, and its first line is not a whole array.

    A line that is a whole array, with others after it, is no row of a table, and is reported as such.
    """
    begin = next(pieces_of(path, _FIRST_PIECE), "").lstrip()
    if not begin.startswith("["):
        return False
    first, _, others = begin.partition("\n")
    if not others.strip():
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return False


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    # str.splitlines would also split at U+2028, U+0085 and others, which JSON allows inside a text.
    for line, content in enumerate(lines_of(path, newline="\n"), 1):
        if not content.strip():
            continue
        try:
            yield line, json.loads(content, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            where = f"{path.name} cannot be read as {path.suffix[1:]}: line {line}: {error}"
            raise DataError(f"{where}. Write one JSON object a line") from error


def _items(path: Path) -> Iterator[tuple[None, Any]]:
    """Items of one array, parsed piece by piece."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    pieces = _Pieces(pieces_of(path, _FIRST_PIECE))
    pieces.skip("[")
    number = 0
    while not pieces.at("]"):
        if number and not pieces.at(","):
            raise DataError(_broken_array(path, number, "expected a comma"))
        if number:
            pieces.skip(",")
        number += 1
        try:
            yield None, pieces.parse(decoder)
        except (ValueError, RecursionError) as error:
            raise DataError(_broken_array(path, number, str(error))) from error
    pieces.skip("]")
    if not pieces.at(""):
        raise DataError(_broken_array(path, number, "text follows the end of the array"))


def _broken_array(path: Path, number: int, problem: str) -> str:
    where = f"row {number} of its array" if number else "its array"
    return (
        f"{path.name} cannot be read as {path.suffix[1:]}: {where}: {problem}. Write one JSON object a line"
    )


class _Pieces:
    """Text of a file, of which only the part that is being parsed is in memory."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces, self._text, self._start = pieces, "", 0

    def at(self, sign: str) -> bool:
        """Whether the next character that is no space is ``sign``; the end of the file for an empty one."""
        while True:
            while self._start < len(self._text) and self._text[self._start].isspace():
                self._start += 1
            if self._start < len(self._text):
                return bool(sign) and self._text[self._start] == sign
            if not self._read(_FIRST_PIECE):
                return not sign

    def skip(self, sign: str) -> None:
        if self.at(sign):
            self._start += 1

    def parse(self, decoder: json.JSONDecoder) -> Any:
        """The next value. Raises :class:`ValueError` if it is not valid JSON."""
        self.at("")
        size = _FIRST_PIECE
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._start)
            except ValueError:
                # The value may continue. Doubling the piece keeps the work linear in the value's length.
                if not self._read(size):
                    raise
                size *= 2
                continue
            self._start = end
            return value

    def _read(self, size: int) -> bool:
        """Append at least ``size`` characters, unless the file ends; False if nothing was left."""
        parts, length = [self._text[self._start :]], 0
        for piece in self._pieces:
            parts.append(piece)
            length += len(piece)
            if length >= size:
                break
        self._text, self._start = "".join(parts), 0
        return length > 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"an object has two values for {quoted(key)}; remove one")
        found[key] = value
    return found


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
