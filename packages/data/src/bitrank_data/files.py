"""A user's file as a task: CSV, JSON lines or Parquet with columns ``text`` and optionally ``label``.

With ``label`` the task is classification. Different texts are split 80 / 10 / 10 by the hash of their content
(:mod:`bitrank_data.splitting`), so the same texts give the same split on every machine, and equal texts are
in one split. Rows without text are skipped and counted. A missing or invalid label is an error that names its
row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bitrank_data.errors import DataError
from bitrank_data.examples import DataReport, Example, Source, Texts
from bitrank_data.kinds import data_kind, kind_of_columns
from bitrank_data.labels import read_classes
from bitrank_data.readers import READERS, Row, Table, doubled, read_table, shown
from bitrank_data.splitting import split_by_text

_MIN_ROWS = 10
_EXPECTED = "Expected 'text' and 'label' for classification, 'text' alone for language modelling"
# Common names of label columns. A file with one of them and no 'label' is not plain text for language
# modelling.
_LIKE_LABEL = {
    "label", "labels", "class", "classes", "target", "targets", "category", "categories", "sentiment", "y",
}  # fmt: skip
# Kinds of files read by this process: a study opens the same file for every run. Texts may be large, so they
# are not cached.
_KINDS: dict[tuple[str, str], str] = {}
_CONVERSATIONS = (
    "messages", "conversations", "prompt", "completion", "instruction", "output", "response", "chosen",
)  # fmt: skip


def file_source(path: Path) -> Source:
    """Task of the file at ``path``, which is read and split here to reject a bad file before any run.

    Raises :class:`DataError` if it is missing, of another type, has no column ``text``, or has an unusable
    row.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:  # such as a name that is too long for the file system
        raise DataError(f"cannot read {path.name[:60]!r}: {error.strerror}; give another path") from error
    if is_folder:
        raise DataError(f"{path} is a folder; give the path of a {', '.join(READERS)} file in it")
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.suffix.lower() not in READERS:
        suffix = path.suffix or "no suffix"
        raise DataError(f"{path.name}: expected one of {', '.join(READERS)}, got {suffix!r}")
    content = _bytes_of(path)
    digest = hashlib.sha256(content).hexdigest()
    key = path.name, digest
    if key in _KINDS:
        return Source(path.stem, _KINDS[key], lambda: digest, partial(_read_again, path, digest))
    texts = _texts(path, content)
    _KINDS[key] = texts.kind
    return Source(path.stem, texts.kind, lambda: digest, lambda: texts)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _read_again(path: Path, digest: str) -> Texts:
    content = _bytes_of(path)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{path} was changed while it was in use; run the same command again")
    return _texts(path, content)


def _check_columns(name: str, columns: Sequence[str]) -> None:
    found = f"found {shown(list(columns))}" if columns else "found none"
    if twice := doubled(list(columns)):
        raise DataError(f"{name} has two columns {twice[0]!r} ({found}); rename or remove one")
    if "text" not in columns:
        raise DataError(f"{name} has no column 'text'; {found}. {_EXPECTED}; {_remedy(name, columns)}")
    near = [column for column in columns if column.strip().casefold() in _LIKE_LABEL]
    if near and "label" not in columns:
        raise DataError(
            f"{name} has a column {near[0]!r} but none called 'label'; {found}. {_EXPECTED}: rename "
            f"{near[0]!r} to 'label', or remove it for language modelling"
        )


def _remedy(name: str, columns: Sequence[str]) -> str:
    conversations = [column for column in columns if column in _CONVERSATIONS]
    if conversations:
        kinds = "chat, prompt and completion, and instruction files"
        return f"{kinds} are not supported: write each example as one text"
    if near := [column for column in columns if column.strip().casefold() == "text"]:
        return f"rename {near[0]!r} to 'text'"
    if name.lower().endswith(".csv"):
        return "rename the column that holds the text, or add a header line if the file has none"
    return "rename the column that holds the text"


def _texts(path: Path, content: bytes) -> Texts:
    name, table = path.name, read_table(path, content)
    _check_columns(name, table.columns)
    kind = kind_of_columns(table.columns)
    rows = [row for row in table.rows if _has_text(name, row)]
    if len(rows) < _MIN_ROWS:
        empty = f" with text ({len(table.rows) - len(rows)} without)" if len(rows) < len(table.rows) else ""
        needed = f"at least {_MIN_ROWS} are needed for three splits"
        raise DataError(f"{name} has {len(rows)} rows{empty}; {needed}")
    classes: tuple[str, ...] = ()
    labels: Sequence[int | None] = [None] * len(rows)
    report = _reading(table, rows)
    if "label" in data_kind(kind).columns:
        classes, labels, notes = read_classes(name, rows)
        report += DataReport(notes=notes)
    by_id = {f"{row.number - 1}": row for row in rows}
    pairs = zip(by_id.items(), labels, strict=True)
    examples = [Example(id_, row.text, label) for (id_, row), label in pairs]
    try:
        splits, splitting = split_by_text(examples, lambda id_: by_id[id_].where, classes)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return Texts(kind, splits, classes, report + splitting)


def _has_text(name: str, row: Row) -> bool:
    """Whether the text of ``row`` is not empty. Raises :class:`DataError` if it is no valid text."""
    text = row.text
    if text is None or (isinstance(text, float) and text != text):
        return False
    if not isinstance(text, str):
        raise DataError(f"{name}: the text of {row.where} is {_instead_of_text(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"has half of a surrogate pair ({error.reason}); remove it"
        raise DataError(f"{name}: the text of {row.where} {problem}") from error
    if "\0" in text:
        raise DataError(f"{name}: the text of {row.where} has a NUL character; remove it")
    return text.strip() not in ("", "nan", "NaN", "<NA>")


def _instead_of_text(value: object) -> str:
    if isinstance(value, list | tuple):
        return "a list, expected text; chat messages are not supported: write each example as one text"
    if isinstance(value, dict):
        remedy = "put the field with the text into a column 'text'"
        return f"an object with {shown(list(value))}, expected text; {remedy}"
    if isinstance(value, bytes):
        return "bytes, expected text; decode the column and save it as text"
    return f"{value!r}, of type {type(value).__name__}, expected text; put it in quotes where it is text"


def _reading(table: Table, rows: Sequence[Row]) -> DataReport:
    """Report the rows and columns that are not used."""
    notes = list(table.notes)
    if unused := [column for column in table.columns if column not in ("text", "label")]:
        notes.append(f"columns that are not used: {shown(unused)}")
    empty = len(table.rows) - len(rows)
    if empty:
        kept = {row.number for row in rows}
        first = next(row.where for row in table.rows if row.number not in kept)
        notes.append(f"{empty} of {len(table.rows)} rows have no text and were left out (the first: {first})")
    return DataReport({"rows": len(table.rows), "rows_without_text": empty}, tuple(notes))
