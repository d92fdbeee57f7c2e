"""Incomplete lines of the events file are skipped and removed."""

from __future__ import annotations

from bitrank.process.events import EventTail, open_events, read_events


def test_incomplete_line_is_not_read_and_is_removed_on_resume(tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b"}\n{"event": "c')
    tail = EventTail(path)
    assert [e["event"] for e in tail.read()] == ["a", "b"] == [e["event"] for e in read_events(path)]
    with open_events(path) as handle:
        handle.write('{"event": "d"}\n')
    assert [e["event"] for e in read_events(path)] == ["a", "b", "d"]
    assert [e["event"] for e in tail.read()] == ["d"]


def test_missing_file_has_no_events(tmp_path) -> None:
    assert read_events(tmp_path / "none") == [] == EventTail(tmp_path / "none").read()
