"""Examples of a user's file in the cache: one JSON line each, read when they are needed.

A file of any size takes the memory of a few numbers per row. Lines are read by position and not mapped into
memory, since examples are read in the order of their hashes, which would map the whole file.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from bitrank_data.examples import Example

_LINES = "examples.jsonl"


class ExampleWriter:
    """Writes fields of examples as lines, and collects their positions."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / _LINES).open("wb")
        self._ends = array("q", [0])

    def add(self, fields: Mapping[str, Any]) -> None:
        line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
        self._file.write(line)
        self._ends.append(self._ends[-1] + len(line))

    def close(self) -> None:
        """Finish the file of lines and write their positions."""
        self._file.close()
        save_numbers(self._folder, "ends", np.asarray(self._ends, dtype=np.int64))


def save_numbers(folder: Path, name: str, numbers: np.ndarray) -> None:
    """Write ``numbers`` for :func:`load_numbers`."""
    np.save(folder / f"{name}.npy", numbers)


def load_numbers(folder: Path, name: str) -> np.ndarray:
    """Numbers of :func:`save_numbers`, mapped into memory."""
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


class FileIds(NamedTuple):
    """Ids of the rows of one file: ``prefix``, and ``base`` plus the number of the row from 0.

    ``base`` is the number of rows in the earlier files of the split. ``name`` is the file's.
    """

    prefix: str
    base: int
    name: str

    def id_of(self, number: int) -> str:
        """Id of row ``number``, counted from 1."""
        return f"{self.prefix}{self.base + number - 1}"


def place_of_id(id_: str, files: Sequence[FileIds]) -> str:
    """Row and file of the example ``id_``, for messages."""
    split, dash, number = id_.rpartition("-")
    # A file without rows begins where the next one does.
    file = [part for part in files if part.prefix == f"{split}{dash}" and part.base <= int(number)][-1]
    return f"row {int(number) - file.base + 1} of {file.name}"


@dataclass(frozen=True)
class StoredExamples(Sequence[Example]):
    """Examples of one split: the lines ``rows_N`` of ``folder``, in that order.

    ``build(id=…, label=…, **fields)`` makes an example; ``label_of`` and ``id_of`` take the number of a line.
    """

    folder: Path
    rows_N: np.ndarray
    build: Callable[..., Example]
    id_of: Callable[[int], str]
    label_of: Callable[[int], int | None]
    ends: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows_N)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return self._read(self.rows_N[index].tolist())
        return self._read([int(self.rows_N[index])])[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _read(self, rows: Sequence[int]) -> list[Example]:
        examples = []
        with (self.folder / _LINES).open("rb") as file:
            for row in rows:
                file.seek(int(self.ends[row]))
                fields = json.loads(file.read(int(self.ends[row + 1] - self.ends[row])))
                examples.append(self.build(id=self.id_of(row), label=self.label_of(row), **fields))
        return examples
