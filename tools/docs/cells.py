"""Text of table cells in Markdown."""

from __future__ import annotations


def cell(text: str) -> str:
    """``text`` on one line, with pipes escaped except inside code, where Python-Markdown needs no escape."""
    parts = " ".join(text.split()).split("`")
    outside = [part.replace("|", "\\|").replace("<", "&lt;") for part in parts[::2]]
    parts[::2] = outside
    return "`".join(parts)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """The lines of a table, followed by an empty line."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(cell(text) for text in row) + " |")
    return [*lines, ""]
