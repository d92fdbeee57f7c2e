"""Events of a run's process for its parent: an append-only file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

_MISSING = "a line of events.jsonl is damaged; the points that it held are missing in the curves"
_DAMAGED: dict[str, Any] = {
    "event": "damaged_line",
    "message": _MISSING,
    "tags": {"damaged_events": _MISSING},
}


def parse_lines(content: bytes) -> list[dict[str, Any]]:
    """Parse the complete lines of ``content`` into events.

    A damaged line (power failure, disk error) becomes an event that reports the damage and has no points.
    """
    return [_parse(line) for line in content.split(b"\n")[:-1]]


def _parse(line: bytes) -> dict[str, Any]:
    try:
        event = dict(json.loads(line))
        return event if isinstance(event.get("event"), str) else _DAMAGED
    except (ValueError, TypeError):
        return _DAMAGED


def open_events(path: Path) -> TextIO:
    """Open the events file for appending, after removing an incomplete last line that a crash left."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as handle:
                handle.truncate(whole)
    return path.open("a", encoding="utf-8")


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of the complete lines at ``path``; an empty list if the file does not exist."""
    if not path.exists():
        return []
    return parse_lines(path.read_bytes())


class EventTail:
    """Read an events file while it grows. Incomplete lines are read once they are complete."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def read(self) -> list[dict[str, Any]]:
        """Return the events appended since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as handle:
            handle.seek(self._at)
            content = handle.read()
        whole = content.rfind(b"\n") + 1
        self._at += whole
        return parse_lines(content[:whole])
