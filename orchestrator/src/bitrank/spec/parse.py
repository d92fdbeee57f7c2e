"""Parse settings and byte amounts from the command line."""

from __future__ import annotations

import re
from typing import Any, get_type_hints

from bitrank.errors import UserError, unknown
from bitrank.spec.run_spec import SETTABLE, RunSpec


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` from the command line, with the value in the field's own type."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"expected key=value, got {text!r}")
    if key not in SETTABLE:
        raise unknown("key", key, SETTABLE)
    annotation = str(get_type_hints(RunSpec)[key])
    if "bool" in annotation:
        if value.lower() not in {"true", "false"}:
            raise UserError(f"{key} must be true or false, got {value!r}")
        return key, value.lower() == "true"
    if key == "memory_limit":
        return key, parse_bytes(value)
    for kind in (int, float):
        if kind.__name__ in annotation:
            try:
                return key, kind(value)
            except ValueError:
                raise UserError(
                    f"{key} must be {'a whole number' if kind is int else 'a number'}, got {value!r}"
                ) from None
    return key, value


def parse_bytes(text: str) -> int:
    """Bytes from ``1610612736``, ``1.5GiB`` or ``900 MB``. Raises :class:`UserError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not match:
        raise UserError(
            f"expected an amount of memory such as 1.5GiB, 900MB or a number of bytes, got {text!r}"
        )
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " "))
