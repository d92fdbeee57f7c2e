"""Members of an archive converted to Parquet tables: one pass over the archive, one member in memory."""

from __future__ import annotations

import inspect
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank_data.archives import code_version
from bitrank_data.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of one Parquet file: those of all members whose path matches ``pattern``, in the archive's order.

    ``rows`` makes them from a member's path and content. ``columns`` maps a column to its Arrow type
    ("string", "int32", "list<string>").
    """

    pattern: str
    rows: Callable[[str, bytes], Sequence[Row]]
    columns: dict[str, str]


@dataclass(frozen=True)
class Tables:
    """Extraction of Parquet files from one archive; ``files`` maps file names to tables.

    Members that no table matches are skipped without being kept.
    """

    files: dict[str, Table]

    @property
    def version(self) -> str:
        """Changes with the code that makes rows."""
        sources = [
            inspect.getsource(inspect.getmodule(table.rows) or table.rows) for table in self.files.values()
        ]
        return code_version(*dict.fromkeys(sources), inspect.getsource(Tables), repr(self._layout()))

    def extract(self, archives: Sequence[Path], folder: Path) -> None:
        """Write all tables into ``folder``. Raises :class:`DataError` if a table has no member."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        (archive,) = archives
        found = dict.fromkeys(self.files, 0)
        with ExitStack() as stack:
            writers: dict[str, pq.ParquetWriter] = {}
            for name, table in self.files.items():
                writer = pq.ParquetWriter(folder / name, _schema(table.columns), compression="zstd")
                writers[name] = stack.enter_context(writer)
            for path, read in _members(archive):
                for name, table in self.files.items():
                    if re.search(table.pattern, path):
                        rows = list(table.rows(path, read()))
                        writers[name].write_table(pa.Table.from_pylist(rows, schema=_schema(table.columns)))
                        found[name] += 1
        absent = [self.files[name].pattern for name, members in found.items() if not members]
        if absent:
            raise DataError(
                f"no member of {archive.name} matches {absent[0]}; the pinned artifact has changed its layout"
            )

    def _layout(self) -> list[tuple[str, str, dict[str, str]]]:
        return [(name, table.pattern, table.columns) for name, table in self.files.items()]


def read_table(path: Path) -> list[Row]:
    """Rows of a Parquet file."""
    import pyarrow.parquet as pq

    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Path of each file in the archive and a function that reads it, to be called before the next one."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                yield name, partial(file.read, name)
        return
    with tarfile.open(archive, "r|gz") as tar:  # a stream: a compressed file is read once, front to back
        for info in tar:
            if info.isfile():
                yield info.name, partial(_read, tar, info)


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(info)
    assert content is not None  # only None for entries that are no files
    return content.read()


def _schema(columns: dict[str, str]) -> Any:
    import pyarrow as pa

    types = {"string": pa.string(), "int32": pa.int32(), "list<string>": pa.list_(pa.string())}
    return pa.schema([(name, types[kind]) for name, kind in columns.items()])
