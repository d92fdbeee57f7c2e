"""Parse settings and byte amounts from the command line."""

from __future__ import annotations

import re
from typing import Any

from bitrank.errors import UserError, shortened, unknown
from bitrank.spec.fields import ByteAmount, first, hints_of
from bitrank.spec.run_spec import SETTABLE, RunSpec


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` from the command line, with the value in the field's own type."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"expected key=value, got {shortened(text)}")
    if key not in SETTABLE:
        raise unknown("key", key, SETTABLE)
    if first(hints_of(RunSpec)[key], ByteAmount) is not None:
        value = str(parse_bytes(value))
    from bitrank.spec.validation import parse_text

    return key, parse_text(RunSpec, key, value)


def parse_bytes(text: str) -> int:
    """Bytes from ``1610612736``, ``1.5GiB`` or ``900 MB``. Raises :class:`UserError`."""
    # Not more digits than an exbibyte has: beyond it, the product is inexact or overflows.
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([kMGT]?)(i?)B?\s*", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise UserError(
            f"expected an amount of memory such as 1.5GiB, 900MB or a number of bytes, got {shortened(text)}"
        )
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " "))
