"""Token sequences on disk: written one by one, and mapped into memory when they are read."""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from bitrank_data.sequences import Ids, Piece, TokenSplit
from bitrank_data.stored import load_numbers, save_numbers

# Numbers per token: one, or two for spans; none for kinds without them.
_ARRAYS = ("tokens", "targets", "types", "spans")


class SplitWriter:
    """Writes the sequences of one split. In memory are an offset, a label, an id and the record of each.

    ``classes`` are the labels of sequences and tokens so far, and ``largest_id`` is the largest token id.
    ``unknown`` counts the tokens ``unknown_id``.
    """

    def __init__(self, folder: Path, split: str, unknown_id: int | None = None) -> None:
        self._folder, self._split = folder, split
        self._files: dict[str, IO[bytes]] = {}
        for name in _ARRAYS:
            self._files[name] = (folder / f"{split}.{name}.int32").open("wb")
        self._offsets, self._labels, self._id_ends = array("q", [0]), array("q"), array("q")
        self._ids = bytearray()
        self._records: dict[str, dict[str, Any]] = {}
        self.classes: set[int] = set()
        self.largest_id = 0
        self._unknown_id, self.unknown = unknown_id, 0

    @property
    def sequences(self) -> int:
        """Number of sequences so far."""
        return len(self._offsets) - 1

    @property
    def tokens(self) -> int:
        """Number of tokens so far."""
        return self._offsets[-1]

    def record(self, id_: str, texts: dict[str, Any]) -> None:
        """Keep the ``texts`` that the evaluation of an example needs."""
        self._records[id_] = texts

    def add(self, piece: Piece, id_: str, label: int | None) -> None:
        spans = () if piece.spans is None else piece.spans
        arrays = (piece.tokens, piece.targets, piece.types, spans)
        for name, numbers in zip(_ARRAYS, arrays, strict=True):
            self._files[name].write(np.asarray(numbers, dtype="<i4").tobytes())
        self._offsets.append(self._offsets[-1] + len(piece.tokens))
        self._ids += id_.encode()
        self._id_ends.append(len(self._ids))
        self.largest_id = max(self.largest_id, int(np.max(piece.tokens)))
        if self._unknown_id is not None:
            self.unknown += int(np.count_nonzero(np.asarray(piece.tokens) == self._unknown_id))
        if label is not None:
            self._labels.append(label)
            self.classes.add(label)
        if len(piece.targets):
            self.classes.update(np.unique(piece.targets).tolist())

    def close(self) -> None:
        """Finish the files and write the arrays of the sequences."""
        for file in self._files.values():
            file.close()
        arrays = {"offsets": self._offsets, "labels": self._labels, "id_ends": self._id_ends}
        for name, numbers in arrays.items():
            save_numbers(self._folder, f"{self._split}.{name}", np.asarray(numbers, dtype=np.int64))
        save_numbers(self._folder, f"{self._split}.ids", np.frombuffer(bytes(self._ids), dtype=np.uint8))
        (self._folder / f"{self._split}.records.json").write_text(json.dumps(self._records))


def read_split(folder: Path, split: str) -> TokenSplit:
    """Split of a :class:`SplitWriter`, mapped into memory: only sequences that are used are loaded."""
    maps = [_mapped(folder / f"{split}.{name}.int32") for name in _ARRAYS]
    # An empty file cannot be mapped, and gives an empty array.
    tokens, targets, types, spans = (np.frombuffer(mapped or b"", dtype="<i4") for mapped in maps)
    numbers = {
        name: load_numbers(folder, f"{split}.{name}") for name in ("offsets", "labels", "ids", "id_ends")
    }
    ids = Ids(numbers["ids"], numbers["id_ends"])
    records = json.loads((folder / f"{split}.records.json").read_text())
    offsets, labels = numbers["offsets"], numbers["labels"]
    release = partial(_release, [mapped for mapped in maps if mapped is not None])
    return TokenSplit(tokens, offsets, labels, ids, targets, types, spans.reshape(-1, 2), records, release)


def _mapped(path: Path) -> mmap.mmap | None:
    if not path.stat().st_size:
        return None
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _release(maps: Sequence[mmap.mmap]) -> None:
    """Remove the pages of ``maps`` from the process's memory; they stay in the system's cache of files."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in maps:
            mapped.madvise(mmap.MADV_DONTNEED)
