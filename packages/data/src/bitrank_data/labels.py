"""Classes from the labels of a user's file; ambiguous labels are errors.

Text, whole numbers and booleans are classes. ``1`` and ``1.0`` are one class. Rejected are spellings whose
identity is unclear (``Pos`` beside ``pos``), missing labels, several labels in one row, and numbers that look
like a regression target.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from bitrank_data.errors import DataError
from bitrank_data.readers import Row

# Half stars from 0 to 5 are classes; more than this number of different fractional values indicates
# regression.
_MOST_FRACTIONS = 20
_MISSING = {"", "nan", "NaN", "<NA>"}  # missing values as written by spreadsheets and pandas
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def read_classes(name: str, rows: Sequence[Row]) -> tuple[tuple[str, ...], list[int], tuple[str, ...]]:
    """Class names in order (numbers by size, then text), class of each row, and notes for the user.

    Raises :class:`DataError` that names the row of the first invalid label.
    """
    _refuse_missing(name, rows)
    labels = [_class_of(name, row) for row in rows]
    first: dict[str, Row] = {}
    for label, row in zip(labels, rows, strict=True):
        first.setdefault(label, row)
    _refuse_fractions(name, first)
    _refuse_spellings(name, first)
    classes = tuple(sorted(first, key=_by_number))
    if len(classes) < 2:
        raise DataError(
            f"{name}: classification needs two classes or more, every label is {classes[0]!r}. Add examples "
            "of another class, or remove the column 'label' for language modelling"
        )
    index = {label: number for number, label in enumerate(classes)}
    notes = (*_rewritten(rows, labels), *_minus_one(labels))
    return classes, [index[label] for label in labels], notes


def _refuse_missing(name: str, rows: Sequence[Row]) -> None:
    missing = [row for row in rows if _is_missing(row.label)]
    if not missing:
        return
    others = f" (nor have {len(missing) - 1} other rows)" if len(missing) > 1 else ""
    raise DataError(
        f"{name}: {missing[0].where} has no label{others}. Give every row a label or remove the rows "
        "without one; for language modelling remove the column 'label'"
    )


def _is_missing(label: object) -> bool:
    if isinstance(label, float):
        return math.isnan(label)
    return label is None or (isinstance(label, str) and label.strip() in _MISSING)


def _class_of(name: str, row: Row) -> str:
    """Class name of a label: text without surrounding space, whole numbers without a decimal point."""
    label = row.label
    if isinstance(label, bool | int):
        return str(label)
    if isinstance(label, float):
        if math.isinf(label):
            problem = f"has the label {label}, which is no class; give whole numbers or text"
            raise DataError(f"{name}: {row.where} {problem}")
        return str(int(label)) if label.is_integer() else str(label)
    if isinstance(label, str):
        text = label.strip()
        whole = re.fullmatch(r"(-?\d+)\.0*", text)
        return whole[1] if whole else text
    if isinstance(label, list | tuple):
        problem = "a list of labels; multi-label classification is not supported: give one label a row"
    elif isinstance(label, bytes):
        problem = "bytes; save it as text"
    else:
        problem = f"of type {type(label).__name__}; give text, a whole number or true/false"
    raise DataError(f"{name}: the label of {row.where} is {problem}")


def _refuse_fractions(name: str, first: dict[str, Row]) -> None:
    fractions = [label for label in first if _NUMBER.fullmatch(label) and not float(label).is_integer()]
    if len(fractions) > _MOST_FRACTIONS:
        example = f"{first[fractions[0]].where}: {fractions[0]}"
        raise DataError(
            f"{name}: the labels are {len(first)} different numbers, with fractions ({example}). "
            "Regression is not supported: round or bin them to a few classes"
        )


def _refuse_spellings(name: str, first: dict[str, Row]) -> None:
    seen: dict[object, str] = {}
    for label in first:
        key = float(label) if _NUMBER.fullmatch(label) else label.casefold()
        if key in seen:
            both = " and ".join(f"{one!r} ({first[one].where})" for one in (seen[key], label))
            remedy = "write one of them everywhere, or give them different names"
            raise DataError(f"{name}: the labels {both} differ in spelling alone; {remedy}")
        seen[key] = label


def _rewritten(rows: Sequence[Row], labels: Sequence[str]) -> tuple[str, ...]:
    """Notes on different spellings read as one class."""
    spellings: dict[str, dict[str, None]] = {}
    for row, label in zip(rows, labels, strict=True):
        spellings.setdefault(label, {})[repr(row.label)] = None
    merged = {label: " and ".join(written) for label, written in spellings.items() if len(written) > 1}
    return tuple(f"{written} are one class, {label!r}" for label, written in merged.items())


def _minus_one(labels: Sequence[str]) -> tuple[str, ...]:
    count = labels.count("-1")
    if not count or "0" not in labels:
        return ()
    remedy = "where it means 'not labelled', remove these rows"
    return (f"label -1 ({count} rows) is trained on as a class; {remedy}",)


def _by_number(label: str) -> tuple[int, float, str]:
    """Sort key: numbers by size, then text."""
    return (0, float(label), label) if _NUMBER.fullmatch(label) else (1, 0.0, label)
