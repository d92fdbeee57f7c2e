"""A user's own file as a task: CSV, JSON lines or Parquet with a column ``text``, and ``label`` for classification.

Rows are split 80 / 10 / 10 by the hash of their text, so the same file gives the same split everywhere.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bitrank_data.errors import DataError
from bitrank_data.examples import Example, Source, Texts, split_off

_MIN_ROWS = 10


def file_source(path: Path) -> Source:
    """A task from the file at ``path``. Raises :class:`DataError` when it is missing, of another type, or has no column ``text``."""
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.suffix.lower() not in _READERS:
        raise DataError(f"{path.name}: expected one of {', '.join(_READERS)}, got {path.suffix or 'no suffix'!r}")
    rows = _read(path)
    columns = list(rows[0])
    if "text" not in columns:
        raise DataError(f"{path.name} has no column 'text'; found {', '.join(columns)}. Rename the column that holds the text.")
    kind = "classification" if "label" in columns else "language-modelling"
    load = partial(_labelled if kind == "classification" else _plain, path.name, rows)
    return Source(path.stem, kind, lambda: hashlib.sha256(path.read_bytes()).hexdigest(), load)  # type: ignore[arg-type]


def _labelled(name: str, rows: list[dict[str, Any]]) -> Texts:
    labels = [row["label"] for row in rows]
    if any(label is None or label == "" for label in labels):
        raise DataError(f"{name}: row {labels.index(next(x for x in labels if x in (None, ''))) + 1} has no label")
    classes = sorted({str(label) for label in labels}, key=_by_number)
    if len(classes) < 2:
        raise DataError(f"{name}: classification needs two classes or more, every label is {classes[0]!r}")
    index = {label: number for number, label in enumerate(classes)}
    examples = [Example(f"{n}", str(row["text"]), index[str(row["label"])]) for n, row in enumerate(rows)]
    return Texts("classification", _split(examples), tuple(classes))


def _plain(name: str, rows: list[dict[str, Any]]) -> Texts:
    return Texts("language-modelling", _split([Example(f"{n}", str(row["text"])) for n, row in enumerate(rows)]))


def _split(examples: list[Example]) -> dict[str, list[Example]]:
    tenth = max(1, len(examples) // 10)
    return split_off(examples, test=tenth, validation=tenth)


def _by_number(label: str) -> tuple[int, float, str]:
    """Numeric labels in numeric order, before the others."""
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rows = _READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (ValueError, OSError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as {path.suffix[1:]}: {error}") from error
    if len(rows) < _MIN_ROWS:
        raise DataError(f"{path.name} has {len(rows)} rows; at least {_MIN_ROWS} are needed for three splits")
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        return list(csv.DictReader(handle))


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
