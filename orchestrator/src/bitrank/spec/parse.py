"""Parse settings and byte amounts from the command line."""

from __future__ import annotations

import re
from typing import Any

from bitrank.errors import UserError, shortened, unknown
from bitrank.spec.fields import ByteAmount, first, hints_of
from bitrank.spec.make_spec import SETTABLE
from bitrank.spec.run_spec import RunSpec


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse ``key=value``; the value gets the type of the spec's field. Raises :class:`UserError`."""
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
    """Parse ``1610612736``, ``1.5GiB`` or ``900 MB`` to bytes. Raises :class:`UserError`."""
    # At most as many digits as an exbibyte has: the product of longer numbers is inexact or overflows.
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([kMGT]?)(i?)B?\s*", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise UserError(
            f"expected an amount of memory such as 1.5GiB, 900MB or a number of bytes, got {shortened(text)}"
        )
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " "))
