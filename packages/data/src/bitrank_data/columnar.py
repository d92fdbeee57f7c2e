"""Readers of Parquet and Arrow files, a few hundred rows at a time; every value keeps its type."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bitrank_data.rows import Row, Table

_ROWS = 256  # converted to Python values at once
_FILE_MARK = b"ARROW1"  # an Arrow file; without it, a stream, as the library datasets writes


def open_parquet(path: Path, known: Collection[str]) -> Table:
    """Table of a Parquet file."""
    import pyarrow.parquet as pq

    def batches(used: list[str]) -> Iterator[Any]:
        # Without these settings whole row groups are buffered.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        return file.iter_batches(batch_size=_ROWS, columns=used)

    return _table(pq.ParquetFile(path).schema_arrow, batches)


def open_arrow(path: Path, known: Collection[str]) -> Table:
    """Table of an Arrow file or stream, such as ``save_to_disk`` of the library datasets writes."""
    import pyarrow as pa

    def batches(used: list[str]) -> Iterator[Any]:
        with pa.OSFile(str(path)) as file:
            for batch in _record_batches(file):
                for start in range(0, batch.num_rows, _ROWS):
                    yield batch.slice(start, _ROWS).select(used)

    with pa.OSFile(str(path)) as file:
        schema = _reader(file).schema
    return _table(schema, batches)


def _reader(file: Any) -> Any:
    import pyarrow as pa

    mark = file.read(len(_FILE_MARK))
    file.seek(0)
    return pa.ipc.open_file(file) if mark == _FILE_MARK else pa.ipc.open_stream(file)


def _record_batches(file: Any) -> Iterator[Any]:
    reader = _reader(file)
    if hasattr(reader, "num_record_batches"):
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from reader


def _table(schema: Any, batches: Any) -> Table:
    columns = [column for column in schema.names if not column.startswith("__index_level_")]

    def rows(used: Collection[str]) -> Iterator[Row]:
        number = 0
        for batch in batches([column for column in columns if column in used]):
            for cells in batch.to_pylist():
                number += 1
                yield Row(number, None, cells)

    return Table(columns, rows)
