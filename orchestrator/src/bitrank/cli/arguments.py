"""Types of command-line arguments: argparse calls them and prints their error as one sentence."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path

from bitrank.errors import UserError, shortened
from bitrank.spec.fields import TEXT_LENGTH

_NAME_BYTES = 255  # the longest name that file systems accept
_LARGEST = 10**9
_LARGEST_SEED = 2**32 - 1


def check_text(arguments: Sequence[str]) -> None:
    """Raise :class:`UserError` for invalid Unicode, which cannot be printed, stored or transmitted."""
    for number, text in enumerate(arguments, 1):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"argument {number} is not valid Unicode: {shortened(text)}; "
                "give it as UTF-8, and rename files whose names are not UTF-8"
            ) from None


def location(text: str) -> str:
    """A path or URI: not empty, and not longer than the operating system accepts."""
    if not text.strip():
        raise ArgumentTypeError("expected a path, got an empty text")
    longest = max(len(part.encode(errors="replace")) for part in text.split("/"))
    if len(text) >= TEXT_LENGTH or longest > _NAME_BYTES or "\0" in text:
        raise ArgumentTypeError(f"expected a path that the operating system accepts, got {shortened(text)}")
    # Shells expand `--store ~/runs`, but not `--store=~/runs`.
    return str(Path(text).expanduser()) if text.startswith("~/") else text


def file_path(text: str) -> Path:
    """A path of a file or folder."""
    return Path(location(text))


def whole(least: int = 1, most: int = _LARGEST) -> Callable[[str], int]:
    """A parser of whole numbers from ``least`` to ``most``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"expected a whole number, got {shortened(text)}") from None
        if not least <= value <= most:
            bound = f"must be {least} or more" if value < least else f"must be at most {most}"
            raise ArgumentTypeError(f"{bound}, got {shortened(value)}")
        return value

    return read


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number, got {shortened(text)}") from None
    if not (math.isfinite(value) and value > 0):
        raise ArgumentTypeError(f"must be a finite number above 0, got {shortened(text)}")
    return value


def comma_separated(text: str) -> list[str]:
    """One or more names."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ArgumentTypeError(f"expected names separated by commas, got {shortened(text)}")
    return parts


def seeds(text: str) -> list[int]:
    """One or more seeds."""
    return _whole_numbers(text, whole(0, _LARGEST_SEED), "0,1,2")


def ranks(text: str) -> list[int]:
    """One or more ranks."""
    return _whole_numbers(text, whole(0, 2**16), "4,8,16")


def factors(text: str) -> list[float]:
    """One or more finite numbers above 0."""
    return [positive(part) for part in comma_separated(text)]


def _whole_numbers(text: str, read: Callable[[str], int], example: str) -> list[int]:
    try:
        return [read(part) for part in comma_separated(text)]
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"expected whole numbers like {example}: {error}") from None
