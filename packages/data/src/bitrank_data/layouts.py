"""Columns of a user's file, and the example that its cells make.

A kind of task lists its layouts (:class:`~bitrank_data.kinds.DataKind`). The layout with the most columns
that a file has decides the file's kind. The user may name the columns of text and label (:class:`Naming`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from bitrank_data.errors import DataError
from bitrank_data.examples import Example, PairExample, TargetExample
from bitrank_data.rows import quoted, shown

TEXT, PAIR, TARGET, LABEL = "text", "pair", "target", "label"  # roles of columns
REMARK = "remark"  # key of the fields of :attr:`Layout.parse`: notes on unused parts of a row, counted
_MISSING = {"", "nan", "NaN", "<NA>"}  # missing values as written by spreadsheets and pandas
# Other spellings, in any case. They may be texts (a film can be called "None"), so they only give a note.
_LIKE_MISSING = {"null", "none", "na", "n/a", "#n/a", "#na", "nan", "<na>"}
_LONGEST_LIKE = 20  # characters of a cell that is compared with them


class LeftOut(Exception):
    """A row that makes no example; the message is the reason, such as ``no text``."""


class Refused(ValueError):
    """An invalid cell; the message continues ``the text of row 5 ``, with the role in ``role``."""

    def __init__(self, role: str, problem: str) -> None:
        super().__init__(problem)
        self.role = role


@dataclass(frozen=True)
class Layout:
    """Columns of one form of file.

    ``columns`` and ``optional`` map a role to the name of its column; the role ``label`` is the class of an
    example. ``parse`` takes the cells by role and returns fields of the example as JSON values, and maybe
    :data:`REMARK`; it raises :class:`LeftOut` or :class:`Refused`. ``build(id=…, label=…, **fields)`` makes
    the example.
    """

    columns: Mapping[str, str]
    parse: Callable[[Mapping[str, Any]], dict[str, Any]]
    build: Callable[..., Example] = Example
    optional: Mapping[str, str] = field(default_factory=dict)

    def present(self, columns: Sequence[str]) -> dict[str, str]:
        """Role → column of all roles that a file with ``columns`` has."""
        optional = {role: column for role, column in self.optional.items() if column in columns}
        return {**self.columns, **optional}


@dataclass(frozen=True)
class Naming:
    """Names of columns given by the user: of the text, or of both texts of a pair, and of the label."""

    text: tuple[str, ...] = ()
    label: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All names that are given."""
        return (*self.text, *([self.label] if self.label is not None else []))

    def apply(self, layout: Layout) -> Layout | None:
        """``layout`` with the named columns; None if it has no such roles."""
        if not self.columns:
            return layout
        columns = dict(layout.columns)
        if self.text:
            roles = [role for role in (TEXT, PAIR) if role in columns]
            if len(roles) != len(self.text):
                return None
            columns |= dict(zip(roles, self.text, strict=True))
        if self.label is not None:
            if LABEL not in columns:
                return None
            columns[LABEL] = self.label
        return replace(layout, columns=columns)


def text_columns(column: str | None, label: str | None) -> Naming:
    """The user's names: ``column`` is one name or two separated by a comma.

    Raises :class:`DataError` for more names or an empty one.
    """
    names = tuple(name.strip() for name in column.split(",")) if column is not None else ()
    if len(names) > 2 or "" in names:
        raise DataError(
            f"expected the name of one text column, or two names as in 'a,b', got {quoted(column)}"
        )
    return Naming(names, label)


def text_of(cells: Mapping[str, Any], role: str, missing: str | None = None) -> str:
    """The text of a cell.

    Raises :class:`LeftOut` for a missing or empty one (``no text``), and :class:`Refused` for other values.
    """
    value = cells.get(role)
    if is_missing(value):
        raise LeftOut(missing or f"no {role}")
    if not isinstance(value, str):
        raise Refused(role, f"is {_instead_of_text(value)}")
    check_text(value, role)
    return value


def is_missing(value: object) -> bool:
    """Whether a cell has no value: null, NaN, blank, or text by which spreadsheets and pandas write these."""
    if isinstance(value, str):
        return value.strip() in _MISSING
    return value is None or (isinstance(value, float) and value != value)


def looks_missing(value: object) -> TypeGuard[str]:
    """Whether a cell is text that may stand for a missing value, such as ``NULL``, but is used as text."""
    if not isinstance(value, str) or len(value) > _LONGEST_LIKE or is_missing(value):
        return False
    return value.strip().casefold() in _LIKE_MISSING


def check_text(text: str, role: str) -> None:
    """Raise :class:`Refused` if ``text`` has a character that no text has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused(role, f"has half of a surrogate pair ({error.reason}); remove it") from error
    if "\0" in text:
        raise Refused(role, "has a NUL character; remove it")


def _instead_of_text(value: object) -> str:
    if isinstance(value, list | tuple):
        remedy = "name the column 'messages' where it holds a conversation"
        return f"a list, expected text; {remedy}, else write each example as one text"
    if isinstance(value, dict):
        remedy = "put the field with the text into a column 'text'"
        return f"an object with {shown(list(value))}, expected text; {remedy}"
    if isinstance(value, bytes):
        return "bytes, expected text; decode the column and save it as text"
    kind = type(value).__name__
    return f"{quoted(value)}, of type {kind}, expected text; put it in quotes where it is text"


def _text(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {TEXT: text_of(cells, TEXT)}


def _pair(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {role: text_of(cells, role, "no text") for role in (TEXT, PAIR)}


def _source(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {role: text_of(cells, role) for role in (TEXT, TARGET)}


# A prompt and a completion are instruction data: decoders continue them. Encoder-decoders read these.
SOURCE_AND_TARGET = tuple(
    Layout({TEXT: source, TARGET: target}, _source, TargetExample)
    for source, target in (("source", "target"), ("document", "summary"))
)
PLAIN_TEXT = (Layout({TEXT: "text"}, _text),)
LABELLED_TEXT = (
    Layout({TEXT: "text", LABEL: "label"}, _text),
    *(
        Layout({TEXT: first, PAIR: second, LABEL: "label"}, _pair, PairExample)
        for first, second in (
            ("sentence1", "sentence2"),
            ("premise", "hypothesis"),
            ("text", "text_pair"),
            ("question1", "question2"),
            ("question", "sentence"),
        )
    ),
)
