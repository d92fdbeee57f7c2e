"""Match the classes of a checkpoint's classifier with those of the user's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def class_names(classes: int | Sequence[str]) -> list[str]:
    """Return the names of ``classes``; an integer gives the names 0, 1, …"""
    return [str(number) for number in range(classes)] if isinstance(classes, int) else list(classes)


def row_order(stored: Mapping[int, str] | None, names: Sequence[str]) -> list[int] | None:
    """Return for each class its row in the stored head; None if the names do not match.

    Letter case and surrounding blanks are ignored, and transformers' default name LABEL_3 is the class named
    3.
    """
    rows = {_plain(name): int(number) for number, name in (stored or {}).items()}
    expected = [_plain(name) for name in names]
    if len(rows) != len(names) or set(rows) != set(expected):
        return None
    return [rows[name] for name in expected]


def _plain(name: str) -> str:
    return str(name).strip().casefold().removeprefix("label_")
