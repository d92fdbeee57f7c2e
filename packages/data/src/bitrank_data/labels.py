"""Classes from the labels of a user's file; ambiguous labels are errors.

Text, whole numbers and booleans are classes. ``1`` and ``1.0`` are one class. Rejected are spellings whose
identity is unclear (``Pos`` beside ``pos``), missing labels, several labels in one row, and numbers that look
like a regression target.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from bitrank_data.errors import DataError
from bitrank_data.layouts import LABEL, Refused, check_text, is_missing
from bitrank_data.rows import quoted, shortened

# Half stars from 0 to 5 are classes; more than this number of different fractional values indicates
# regression.
_MOST_FRACTIONS = 20
_SPELLINGS, _NOTES = 4, 10  # spellings of a class in a note, and classes with a note of their own
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


class ClassReader:
    """Classes of a task, collected row by row; memory grows with the number of classes only.

    ``place`` in the methods names a row for messages, with its file.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._codes: dict[str, int] = {}  # class → number, in order of appearance
        self._first: dict[str, str] = {}  # class → first row
        self._spellings: dict[str, dict[str, None]] = {}
        self._missing = 0
        self._first_missing = ""
        self._minus_one = 0

    def add(self, place: str, label: Any) -> int:
        """Preliminary number of the class of a label. Raises :class:`DataError` for an invalid label."""
        if is_missing(label):
            self._first_missing = self._first_missing or place
            self._missing += 1
            return -1
        name = _class_of(self._name, place, label)
        self._spellings.setdefault(name, {})[repr(label)] = None
        self._first.setdefault(name, place)
        self._minus_one += name == "-1"
        return self._codes.setdefault(name, len(self._codes))

    def finish(self) -> tuple[tuple[str, ...], np.ndarray, tuple[str, ...]]:
        """Class names in order (numbers by size, then text), their number by preliminary number, and notes.

        Raises :class:`DataError` that names a row for labels that are no classes.
        """
        self._refuse_missing()
        _refuse_fractions(self._name, self._first)
        _refuse_spellings(self._name, self._first)
        classes = tuple(sorted(self._first, key=_by_number))
        if len(classes) < 2:
            only = f"every label is {quoted(classes[0])}" if classes else "no row has a label"
            raise DataError(
                f"{self._name}: classification needs two classes or more, {only}. Add examples of another "
                "class, or remove the column 'label' for language modelling"
            )
        numbers = np.zeros(len(classes), dtype=np.int32)
        for number, name in enumerate(classes):
            numbers[self._codes[name]] = number
        return classes, numbers, (*_rewritten(self._spellings), *self._minus_one_note())

    def _refuse_missing(self) -> None:
        if not self._missing:
            return
        others = f" (nor have {self._missing - 1} other rows)" if self._missing > 1 else ""
        raise DataError(
            f"{self._name}: {self._first_missing} has no label{others}. Give every row a label or remove the "
            "rows without one; for language modelling remove the column 'label'"
        )

    def _minus_one_note(self) -> tuple[str, ...]:
        if not self._minus_one or "0" not in self._codes:
            return ()
        remedy = "where it means 'not labelled', remove these rows"
        return (f"label -1 ({self._minus_one} rows) is trained on as a class; {remedy}",)


def _class_of(name: str, place: str, label: Any) -> str:
    """Class name of a label: text without surrounding space, whole numbers without a decimal point."""
    if isinstance(label, bool | int):
        return str(label)
    if isinstance(label, float):
        if math.isinf(label):
            problem = f"has the label {label}, which is no class; give whole numbers or text"
            raise DataError(f"{name}: {place} {problem}")
        return str(int(label)) if label.is_integer() else str(label)
    if isinstance(label, str):
        try:
            check_text(label, LABEL)
        except Refused as error:
            raise DataError(f"{name}: the label of {place} {error}") from error
        text = label.strip()
        whole = re.fullmatch(r"(-?\d+)\.0*", text)
        return whole[1] if whole else text
    if isinstance(label, list | tuple):
        problem = "a list of labels; multi-label classification is not supported: give one label a row"
    elif isinstance(label, bytes):
        problem = "bytes; save it as text"
    else:
        problem = f"of type {type(label).__name__}; give text, a whole number or true/false"
    raise DataError(f"{name}: the label of {place} is {problem}")


def _refuse_fractions(name: str, first: dict[str, str]) -> None:
    numbers = {label: _number(label) for label in first}
    fractions = [label for label, number in numbers.items() if number is not None and _is_fraction(number)]
    if len(fractions) > _MOST_FRACTIONS:
        example = f"{first[fractions[0]]}: {fractions[0]}"
        raise DataError(
            f"{name}: the labels are {len(first)} different numbers, with fractions ({example}). "
            "Regression is not supported: round or bin them to a few classes"
        )


def _refuse_spellings(name: str, first: dict[str, str]) -> None:
    seen: dict[object, str] = {}
    for label in first:
        number = _number(label)
        key = label.casefold() if number is None else number
        if key in seen:
            both = " and ".join(f"{quoted(one)} ({first[one]})" for one in (seen[key], label))
            remedy = "write one of them everywhere, or give them different names"
            raise DataError(f"{name}: the labels {both} differ in spelling alone; {remedy}")
        seen[key] = label


def _rewritten(spellings: dict[str, dict[str, None]]) -> tuple[str, ...]:
    """Notes on different spellings read as one class, for the first ten such classes."""
    merged = {label: list(written) for label, written in spellings.items() if len(written) > 1}
    notes = [
        f"{' and '.join(map(shortened, written[:_SPELLINGS]))}{' and …' if written[_SPELLINGS:] else ''} "
        f"are one class, {quoted(label)}"
        for label, written in list(merged.items())[:_NOTES]
    ]
    further = len(merged) - len(notes)
    return (*notes, *([f"{further} further classes have several spellings"] if further else []))


def _by_number(label: str) -> tuple[int, Decimal, str]:
    """Sort key: numbers by size, then text."""
    number = _number(label)
    return (1, Decimal(0), label) if number is None else (0, number, label)


def _number(label: str) -> Decimal | None:
    """The exact value of a label that is a number; ids of 17 digits and more are equal as floats."""
    if not _NUMBER.fullmatch(label):
        return None
    try:
        return Decimal(label)
    except InvalidOperation:  # an exponent beyond any number
        return None


def _is_fraction(number: Decimal) -> bool:
    return number != number.to_integral_value()
