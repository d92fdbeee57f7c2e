"""Texts from the fields of one record; invalid values are errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitrank_data.errors import DataError
from bitrank_data.rows import quoted


class FieldError(DataError):
    """An invalid field of a record: ``the context is empty``, with ``field`` and ``problem`` apart."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"the {field} {problem}")
        self.field, self.problem = field, problem


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """Text of the field ``name``. Raises :class:`FieldError` if it is missing, empty or no text."""
    value = fields.get(name)
    is_nan = isinstance(value, float) and value != value
    if value is None or is_nan:
        raise FieldError(name, "is missing; give it, or remove the row")
    if not isinstance(value, str):
        raise FieldError(name, f"is {quoted(value)}, of type {type(value).__name__}; expected text")
    if not value.strip():
        raise FieldError(name, "is empty; give it, or remove the row")
    if "\0" in value:
        raise FieldError(name, "has a NUL character; remove it")
    return value
