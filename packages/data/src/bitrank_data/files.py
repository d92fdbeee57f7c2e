"""A user's files as a task: CSV, TSV, JSON, Parquet or Arrow, with columns found by convention or named.

The columns decide the kind of task (:mod:`bitrank_data.layouts`). A single file is split 80 / 10 / 10 by the
hash of its texts (:mod:`bitrank_data.splitting`): equal texts are in one split, and the same texts give the
same split on every machine. Splits that the user made are kept; only a missing validation split is taken from
the training data. Rows without text are skipped and counted. A missing or invalid label is an error that
names its row.

Files are read once, row by row, into the cache (:mod:`bitrank_data.stored`), when the task is opened: a bad
file is rejected before any run, and the memory does not grow with the texts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitrank_data.cache import build_once, cache_dir, code_digest
from bitrank_data.columns import layout_of
from bitrank_data.examples import SPLITS, DataReport, Source, Texts
from bitrank_data.folders import task_files
from bitrank_data.layouts import Naming, text_columns
from bitrank_data.reading import META, read_files
from bitrank_data.stored import FileIds, StoredExamples, load_numbers, place_of_id


@dataclass(frozen=True)
class FileOptions:
    """Options for a user's file: names of columns, and the path of a file with the test split.

    ``text_column`` is one name, or two separated by a comma for pairs of texts.
    """

    text_column: str | None = None
    label_column: str | None = None
    test_file: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """Options that have a value, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def file_source(path: Path, options: FileOptions | None = None) -> Source:
    """Task of the file or folder at ``path``, which is read and split here to reject bad data before any run.

    Raises :class:`DataError` if a file is missing, of another type, lacks columns, or has an unusable row.
    """
    given = options or FileOptions()
    naming = text_columns(given.text_column, given.label_column)
    files = task_files(path, Path(given.test_file) if given.test_file is not None else None)
    content = digest = files.digest()
    if naming.columns:
        digest = hashlib.sha256(json.dumps([digest, naming.text, naming.label]).encode()).hexdigest()
    key = hashlib.sha256(f"{path.name}\0{digest}\0{code_digest()}".encode()).hexdigest()
    # The whole name enters the key. A long one and the key would be too long for a folder.
    place = cache_dir() / "files" / f"{path.stem[:50]}-{key[:16]}"
    read = partial(read_files, path.name, files, content, naming)
    meta = json.loads((build_once(place, read) / META).read_text(encoding="utf-8"))
    return Source(path.stem, meta["kind"], lambda: digest, lambda: _stored(build_once(place, read), naming))


def _stored(folder: Path, naming: Naming) -> Texts:
    """Texts of a task that was read into ``folder``."""
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    _, layout = layout_of(meta["columns"], naming)
    classes, labels = tuple(meta["classes"]), load_numbers(folder, "labels")
    files = [FileIds(*file) for file in meta["files"]]
    file_N, number_N = load_numbers(folder, "files"), load_numbers(folder, "numbers")
    ends = load_numbers(folder, "ends")

    def id_of(row: int) -> str:
        return files[file_N[row]].id_of(int(number_N[row]))

    def label_of(row: int) -> int | None:
        return int(labels[row]) if classes else None

    splits = {
        split: StoredExamples(folder, load_numbers(folder, split), layout.build, id_of, label_of, ends)
        for split in SPLITS
    }
    report = DataReport(meta["counts"], tuple(meta["notes"]))
    place = partial(place_of_id, files=files)
    return Texts(meta["kind"], splits, classes, report, meta["given_splits"], place)
