"""Files are replaced as a whole: a failed write keeps the old content and leaves nothing beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bitrank_analysis.files import write_atomically


def test_text_and_bytes_replace_the_old_content(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.md", "größe\n")
    write_atomically(tmp_path / "a.md", b"\x00\xff")
    assert (tmp_path / "a.md").read_bytes() == b"\x00\xff"
    write_atomically(tmp_path / "a.md", "größe\n")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "größe\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.md"]


def test_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a.md", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "a.md", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.md", "old")]


def test_results_are_written_only_atomically() -> None:
    """No module of the package writes a file in place."""
    package = Path(__file__).parents[1] / "src" / "bitrank_analysis"
    plain = [
        path.name
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in (".write_text(", ".write_bytes(", ".to_csv(folder"))
    ]
    assert plain == []
