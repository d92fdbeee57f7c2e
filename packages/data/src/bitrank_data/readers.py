"""Strict, streaming readers of a user's file by its suffix: every row unchanged, or an error that names it.

Values are not converted: a CSV cell is text, and a JSON, Parquet or Arrow value keeps its type.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from bitrank_data.columnar import open_arrow, open_parquet
from bitrank_data.delimited import open_csv, open_tsv
from bitrank_data.errors import DataError
from bitrank_data.json_rows import open_json
from bitrank_data.rows import Row, Table

READERS: dict[str, Callable[[Path, Collection[str]], Table]] = {
    ".csv": open_csv,
    ".tsv": open_tsv,
    ".json": open_json,
    ".jsonl": open_json,
    ".parquet": open_parquet,
    ".arrow": open_arrow,
}


def open_table(path: Path, known: Collection[str] = ()) -> Table:
    """Table of the file at ``path``; ``known`` are names of columns by which a delimiter is recognized.

    Raises :class:`DataError` with the row and the remedy, here or while rows are read.
    """
    with _readable(path):
        table = READERS[path.suffix.lower()](path, known)

    def rows(used: Collection[str]) -> Iterator[Row]:
        with _readable(path):
            yield from table.rows(used)

    return Table(table.columns, rows, table.notes)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} cannot be read as {path.suffix[1:]}: {error}") from error
