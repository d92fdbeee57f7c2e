"""A note keeps its content, is written once, and a damaged one is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.notes.note import Note, read_note, read_notes, write_note
from hypothesis import given
from hypothesis import strategies as st

NOTE = Note(
    kind="verdict",
    title="Verdicts on reviews",
    day="2026-11-28",
    experiment="bitrank-laptop",
    task="reviews",
    configs=("B-FP", "B-Q4"),
    specs=("0a1b2c3d4e5f",),
    links=("http://127.0.0.1:5000/#/experiments/1/runs/abc",),
    body="B-Q4 is as good as B-FP.\n\n| arm | quality |\n| --- | ---: |\n| B-FP | 0.9 |",
)
LINE = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=40)


@given(title=LINE, body=LINE, config=LINE)
def test_a_note_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, title: str, body: str, config: str
) -> None:
    note = replace(NOTE, title=title, body=body, configs=(config,))
    path = write_note(note, tmp_path_factory.mktemp("notes"))
    assert path is not None and read_note(path) == note


def test_the_same_finding_is_written_once_and_a_changed_one_beside_it(tmp_path: Path) -> None:
    first = write_note(NOTE, tmp_path)
    assert first is not None
    before = first.read_bytes()
    later = replace(NOTE, day="2027-01-01", links=())
    assert write_note(later, tmp_path) is None
    changed = write_note(replace(NOTE, body="B-Q4 is worse."), tmp_path)
    assert changed is not None and changed != first
    assert first.read_bytes() == before and len(read_notes(tmp_path)) == 2


def test_tables_are_no_paragraphs_of_a_search() -> None:
    assert NOTE.paragraphs == ["B-Q4 is as good as B-FP."]


@pytest.mark.parametrize("content", [b"", b"no front matter", b"---\nkind: [\n---\n\ntext", b"\xff\xfe"])
def test_a_damaged_note_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.md").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.md"):
        read_notes(tmp_path)


def test_error_without_notes_names_the_command_that_writes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bitrank report"):
        read_notes(tmp_path / "none")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--notes"):
        write_note(NOTE, tmp_path / "file")
