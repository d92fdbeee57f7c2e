"""The file through which a run's process speaks to its parent: JSON lines, appended, read from the start at will."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO


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
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


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
        return [json.loads(line) for line in content[:whole].splitlines()]
