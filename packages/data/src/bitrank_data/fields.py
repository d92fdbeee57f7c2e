"""Texts from the fields of one record; invalid values are errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitrank_data.errors import DataError


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """Text of the field ``name``. Raises :class:`DataError` if it is missing, empty or no text."""
    value = fields.get(name)
    is_nan = isinstance(value, float) and value != value
    if value is None or is_nan:
        raise DataError(f"the {name} is missing; give it, or remove the row")
    if not isinstance(value, str):
        raise DataError(f"the {name} is {value!r}, of type {type(value).__name__}; expected text")
    if not value.strip():
        raise DataError(f"the {name} is empty; give it, or remove the row")
    if "\0" in value:
        raise DataError(f"the {name} has a NUL character; remove it")
    return value
