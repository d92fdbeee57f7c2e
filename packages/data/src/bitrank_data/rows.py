"""Rows of a user's file, and text files as checked lines."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank_data.errors import DataError

# UTF-32 first: its little-endian mark begins with the one of UTF-16.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_UTF8 = "utf-8-sig"
_LONGEST, _NAMES = 40, 12  # characters of a value in a message, and names in a list of them


@dataclass(frozen=True, slots=True)
class Row:
    """One row: number from 1 (without CSV header), line in the file if known, and its cells by column.

    A missing value is None, or has no cell.
    """

    number: int
    line: int | None
    cells: dict[str, Any]

    @property
    def where(self) -> str:
        """Location of the row for error messages."""
        return place_of(self.number, self.line)


def place_of(number: int, line: int | None) -> str:
    """``row 5 (line 6)``, or without the line if it is unknown."""
    return f"row {number}" if line is None else f"row {number} (line {line})"


@dataclass(frozen=True)
class Table:
    """An open file: its ``columns`` (for JSON those of any row) and ``notes`` on reading.

    ``rows`` takes the names of the columns to read, and reads the file from its beginning, row by row: the
    memory does not grow with the file.
    """

    columns: list[str]
    rows: Callable[[Collection[str]], Iterator[Row]]
    notes: tuple[str, ...] = ()


def encoding_of(path: Path) -> tuple[str, tuple[str, ...]]:
    """Encoding of a text file, UTF-8 or that of its byte-order mark, and notes for the user."""
    with path.open("rb") as file:
        begin = file.read(4)
    encoding = next((encoding for mark, encoding in _MARKS.items() if begin.startswith(mark)), _UTF8)
    return encoding, () if encoding == _UTF8 else (f"read as {encoding.upper()}, by its byte-order mark",)


def lines_of(path: Path, newline: str) -> Iterator[str]:
    """Lines of a text file, split as ``open`` does for ``newline``.

    Raises :class:`DataError` with the line for another encoding and for NUL characters.
    """
    encoding, _ = encoding_of(path)
    try:
        with path.open(encoding=encoding, newline=newline) as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise _has_nul(path, number)
                yield line
    except UnicodeDecodeError as error:
        raise _undecodable(path, encoding) from error


def pieces_of(path: Path, size: int) -> Iterator[str]:
    """Pieces of ``size`` characters of a text file, however long its lines; errors as in :func:`lines_of`."""
    encoding, _ = encoding_of(path)
    line = 1
    try:
        with path.open(encoding=encoding, newline="\n") as file:
            while piece := file.read(size):
                if "\0" in piece:
                    raise _has_nul(path, line + piece.count("\n", 0, piece.index("\0")))
                line += piece.count("\n")
                yield piece
    except UnicodeDecodeError as error:
        raise _undecodable(path, encoding) from error


def _has_nul(path: Path, line: int) -> DataError:
    remedy = "remove it, or save the file as UTF-8 text"
    return DataError(f"{path.name}: line {line} has a NUL character; {remedy}")


def _undecodable(path: Path, encoding: str) -> DataError:
    name = path.name
    if encoding != _UTF8:
        return DataError(f"{name} begins with the mark of {encoding} but is not {encoding}; save it as UTF-8")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return DataError(
                    f"{name} is not UTF-8: line {number} has the byte {line[error.start]:#04x}. Save it as "
                    f"UTF-8; where it is Latin-1: iconv -f LATIN1 -t UTF-8 {name}"
                )
    return DataError(f"{name} is not UTF-8; save it as UTF-8")


def shown(names: Sequence[str]) -> str:
    """The first twelve ``names`` of columns, files or roles for a message, each truncated.

    A name is truncated since the columns of a file without a header are data.
    """
    return ", ".join([shortened(name) for name in names[:_NAMES]] + (["…"] if len(names) > _NAMES else []))


def quoted(value: object) -> str:
    """``repr`` of a value of the user's data for a message, truncated: a cell may have any length."""
    if isinstance(value, str):
        return repr(shortened(value))
    return shortened(reprlib.repr(value))


def shortened(text: str, longest: int = _LONGEST) -> str:
    """``text`` with at most ``longest`` characters, all of which can be printed."""
    if len(text) > longest:
        text = f"{text[: longest - 1]}…"
    return text.encode("utf-8", "backslashreplace").decode()
