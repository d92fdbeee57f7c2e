"""The file through which a run's process speaks to its parent: JSON lines, appended, read from the start at will."""

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
    """The events in ``content``, whole lines. A damaged line (a power cut, a bad disk) becomes an event that says so, without points."""
    return [_parse(line) for line in content.split(b"\n")[:-1]]


def _parse(line: bytes) -> dict[str, Any]:
    try:
        event = dict(json.loads(line))
        return event if isinstance(event.get("event"), str) else _DAMAGED
    except (ValueError, TypeError):
        return _DAMAGED


def open_events(path: Path) -> TextIO:
    """The events file opened to append; a line that a crash tore is cut off first."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as handle:
                handle.truncate(whole)
    return path.open("a", encoding="utf-8")


def read_events(path: Path) -> list[dict[str, Any]]:
    """The whole events at ``path``; none when it is not there."""
    if not path.exists():
        return []
    return parse_lines(path.read_bytes())


class EventTail:
    """Reads an events file as it grows. A line counts once it is whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def read(self) -> list[dict[str, Any]]:
        """The events appended since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as handle:
            handle.seek(self._at)
            content = handle.read()
        whole = content.rfind(b"\n") + 1
        self._at += whole
        return parse_lines(content[:whole])
