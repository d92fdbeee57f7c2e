"""Reading of a user's files into the cache: every row is checked, counted and given a split.

In memory are a hash, a class and a position of each row, never the texts.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bitrank_data.columns import known_columns, layout_of
from bitrank_data.errors import DataError
from bitrank_data.examples import DataReport
from bitrank_data.folders import WHOLE, TaskFiles
from bitrank_data.growing import Growth
from bitrank_data.labels import ClassReader
from bitrank_data.layouts import LABEL, REMARK, TEXT, Layout, LeftOut, Naming, Refused, looks_missing
from bitrank_data.readers import open_table
from bitrank_data.rows import Row, Table, place_of, quoted, shortened, shown
from bitrank_data.splitting import (
    TEST,
    TRAIN,
    VALIDATION,
    Keyed,
    Rows,
    check_given,
    conflicting_labels,
    key_digest,
    refuse_unlearned,
    split_by_text,
)
from bitrank_data.stored import ExampleWriter, FileIds, save_numbers

META = "meta.json"
_MIN_ROWS = 10
_REMARKS = 10  # different remarks on rows in the report: keys of turns may be data


@dataclass
class _Reading:
    """State of reading: a few integers per example, and counts of the rows that are left out.

    Per example: digest of its text, preliminary class, index of its file, number of its row in the file, and
    its line (-1 without one).
    """

    files: TaskFiles
    layout: Layout
    writer: ExampleWriter
    classes: ClassReader
    digests: bytearray = field(default_factory=bytearray)
    growth: Growth = field(default_factory=Growth)
    labels: array = field(default_factory=lambda: array("i"))
    file: array = field(default_factory=lambda: array("h"))
    number: array = field(default_factory=lambda: array("q"))
    line: array = field(default_factory=lambda: array("q"))
    rows: int = 0
    absent: int = 0  # rows that are left out and lack a column altogether, as JSON lines may
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # reason → first row
    remarks: Counter[str] = field(default_factory=Counter)
    doubtful: dict[str, Counter[str]] = field(default_factory=dict)  # column → spellings like missing values

    def place(self, index: int) -> str:
        """Name of example ``index``: its row, and its file if there are several."""
        line = self.line[index]
        return self.in_file(place_of(self.number[index], None if line < 0 else line), self.file[index])

    def in_file(self, where: str, file: int) -> str:
        paths = [path for _, path in self.files.all()]
        return where if len(paths) == 1 else f"{where} of {paths[file].name}"

    def add(self, name: str, row: Row, file: int, columns: dict[str, str]) -> None:
        """Read one row. Raises :class:`DataError` for an invalid cell."""
        self.rows += 1
        cells = {role: row.cells.get(column) for role, column in columns.items()}
        try:
            fields = self.layout.parse(cells)
        except LeftOut as error:
            self.left_out[str(error)] += 1
            self.first.setdefault(str(error), self.in_file(row.where, file))
            self.absent += not set(self.layout.columns.values()) <= row.cells.keys()
            return
        except Refused as error:
            raise DataError(f"{name}: the {error.role} of {row.where} {error}") from error
        self.remarks.update(fields.pop(REMARK, ()))
        for role, cell in cells.items():
            if looks_missing(cell):
                self.doubtful.setdefault(columns[role], Counter())[cell.strip()] += 1
        self.writer.add(fields)
        example = self.layout.build(id="", label=None, **fields)
        self.digests += key_digest(example.key)
        self.growth.add(len(self.labels), example)
        where = self.in_file(row.where, file)
        self.labels.append(self.classes.add(where, cells[LABEL]) if LABEL in columns else 0)
        self.file.append(file)
        self.number.append(row.number)
        self.line.append(-1 if row.line is None else row.line)

    def report(self) -> DataReport:
        """Counts and notes on rows that are not used."""
        notes = [
            f"{count} of {self.rows} rows have {reason} and were left out (the first: {self.first[reason]})"
            for reason, count in self.left_out.items()
        ]
        notes += [
            f"{count} of {self.rows} rows {remark}" for remark, count in self.remarks.most_common(_REMARKS)
        ]
        notes += [
            f"{spellings.total()} cells of the column {quoted(column)} look like missing values "
            f"({shown([repr(spelling) for spelling in spellings])}) and were used as they are; where they "
            "mean that a value is missing, leave the cells empty"
            for column, spellings in self.doubtful.items()
        ]
        counts = {"rows": self.rows, "rows_without_text": self.left_out.total()}
        return DataReport(counts, tuple(notes))


@dataclass(frozen=True)
class _File:
    """One file of a task: its table, its name in messages, and its split."""

    name: str
    split: str
    table: Table


def read_files(name: str, files: TaskFiles, digest: str, naming: Naming, folder: Path) -> None:
    """Read, check and split ``files`` into the cache folder ``folder``; ``name`` is the task's in messages.

    Raises :class:`DataError` for a file that cannot be used, with the row, and for another content than that
    of ``digest``.
    """
    known = known_columns(naming)
    opened = [_File(path.name, split, open_table(path, known)) for split, path in files.all()]
    kind, layout = layout_of(opened[0].table.columns, naming, opened[0].name)
    _check_same(opened, layout)
    reading = _Reading(files, layout, ExampleWriter(folder), ClassReader(name))
    ids = _read_rows(opened, reading)
    _check_count(name, reading, files.are_split)
    classes: tuple[str, ...] = ()
    labels_N = np.asarray(reading.labels, dtype=np.int32)
    report = _unused(files, opened, layout) + reading.report()
    if LABEL in layout.columns:
        classes, numbers, notes = reading.classes.finish()
        labels_N, report = numbers[labels_N], report + DataReport(notes=notes)
    keyed = Keyed(reading.digests, labels_N, reading.place, classes)
    splits = [file.split for file in opened]
    try:
        rows, splitting = _split(keyed, reading.growth, splits, np.asarray(reading.file))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    report += splitting
    arrays = {"labels": labels_N, "files": reading.file, "numbers": reading.number, **rows}
    for part, values in arrays.items():
        save_numbers(folder, part, np.asarray(values))
    meta = {
        "kind": kind,
        "columns": opened[0].table.columns,
        "classes": classes,
        "files": ids,
        "counts": report.counts,
        "notes": report.notes,
        "given_splits": files.are_split,
    }
    (folder / META).write_text(json.dumps(meta), encoding="utf-8")
    if files.digest() != digest:
        raise DataError(f"{name} was changed while it was in use; run the same command again")


def _read_rows(opened: Sequence[_File], reading: _Reading) -> list[FileIds]:
    """Read all rows; the ids of each file."""
    counts: Counter[str] = Counter()
    ids = []
    for number, file in enumerate(opened):
        ids.append(FileIds("" if file.split == WHOLE else f"{file.split}-", counts[file.split], file.name))
        columns = reading.layout.present(file.table.columns)
        before = reading.rows
        for row in file.table.rows(tuple(columns.values())):
            reading.add(file.name, row, number, columns)
        counts[file.split] += reading.rows - before
    reading.writer.close()
    return ids


def _check_same(opened: Sequence[_File], layout: Layout) -> None:
    """Raise :class:`DataError` if a file lacks a column of the first one, by which the kind was chosen."""
    for file in opened[1:]:
        absent = [column for column in layout.columns.values() if column not in file.table.columns]
        if absent:
            found = shown(file.table.columns) or "none"
            raise DataError(
                f"{file.name} has no column {quoted(absent[0])}, which {opened[0].name} has (found {found}); "
                "all files of a task need the same columns"
            )


def _unused(files: TaskFiles, opened: Sequence[_File], layout: Layout) -> DataReport:
    """Notes on reading, and on files and columns that are not used."""
    notes = list(dict.fromkeys(note for file in opened for note in file.table.notes))
    if files.others:
        notes.append(f"files that are not used: {shown(files.others)}")
    columns = opened[0].table.columns
    if unused := [column for column in columns if column not in layout.present(columns).values()]:
        notes.append(f"columns that are not used: {shown(unused)}")
    return DataReport(notes=tuple(notes))


def _check_count(name: str, reading: _Reading, are_split: bool) -> None:
    """Raise :class:`DataError` if too few rows can be used, with the reasons of those that cannot."""
    used = len(reading.labels)
    if reading.absent > used:
        columns = " and ".join(map(shortened, reading.layout.columns.values()))
        first = next(iter(reading.first.values()))
        raise DataError(
            f"{name} mixes rows of different columns: {used} have {columns}, {reading.absent} have not (the "
            f"first: {first}). Give files whose rows all have the same columns"
        )
    if used >= (1 if are_split else _MIN_ROWS):
        return
    left_out = ""
    if set(reading.left_out) == {f"no {TEXT}"}:
        left_out = f" with text ({reading.left_out.total()} without)"
    elif reading.left_out:
        reasons = [f"{count} with {reason}" for reason, count in reading.left_out.items()]
        left_out = f" to learn from ({'; '.join(reasons)}; the first: {next(iter(reading.first.values()))})"
    needed = "at least 1 is needed" if are_split else f"at least {_MIN_ROWS} are needed for three splits"
    raise DataError(f"{name} has {used} rows{left_out}; {needed}")


def _split(
    keyed: Keyed, growth: Growth, split_of_file: Sequence[str], file_N: np.ndarray
) -> tuple[Rows, DataReport]:
    """Rows of each split: by hash for a single file, else as given."""
    if WHOLE in split_of_file:
        rows, report = _by_hash(keyed, growth, np.arange(len(file_N)))
        return rows, report + conflicting_labels(keyed)
    rows = {}
    for split in dict.fromkeys(split_of_file):
        files = [file for file, of_split in enumerate(split_of_file) if of_split == split]
        rows[split] = np.flatnonzero(np.isin(file_N, files))
        if not len(rows[split]):
            raise DataError(f"the {split} split has no rows that can be used; add some")
    refuse_unlearned(rows, keyed)
    # Repeats in a training split from which rows are taken for validation are in the report on that.
    report, given = DataReport(), tuple(rows) if VALIDATION in rows else (TEST,)
    if VALIDATION not in rows:
        train = rows[TRAIN]
        inner, report = _by_hash(keyed, growth, train, (VALIDATION,))
        rows |= inner
        count = f"{len(rows[VALIDATION])} of {len(train)} training rows"
        report += DataReport(notes=(f"no validation data were given: {count}, chosen by hash, validate",))
    report += check_given(rows, keyed, given) + growth.check_given(rows, given)
    return rows, report + conflicting_labels(keyed)


def _by_hash(
    keyed: Keyed, growth: Growth, rows_N: np.ndarray, held_out: Sequence[str] = (TEST, VALIDATION)
) -> tuple[Rows, DataReport]:
    """The rows ``rows_N`` split by the hash of their texts, those that continue each other together."""
    chosen, report = growth.merged(keyed, rows_N, held_out)
    rows, splitting = split_by_text(chosen, held_out)
    return {split: rows_N[indices] for split, indices in rows.items()}, report + splitting
