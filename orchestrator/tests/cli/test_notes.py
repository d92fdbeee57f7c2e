"""``bitrank notes`` prints passages with their runs, and refuses what it cannot search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bitrank.cli.main import main
from bitrank.notes.note import Note, write_note

NOTE = Note(
    kind="verdict",
    title="Verdicts on reviews",
    day="2026-11-28",
    experiment="bitrank-laptop",
    task="reviews",
    configs=("B-Q4",),
    specs=("0a1b2c3d4e5f",),
    links=("http://127.0.0.1:5000/#/experiments/1/runs/abc",),
    body="B-Q4 is as good as B-FP.\n\nJoint-3 ran out of memory.",
)


def test_passages_come_with_their_runs_as_text_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_note(NOTE, tmp_path)
    command = ["notes", "memory exhausted", "--notes", str(tmp_path), "--count", "1"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "Joint-3 ran out of memory." in shown and "B-Q4 is as good" not in shown
    assert "runs: 0a1b2c3d4e5f" in shown and NOTE.links[0] in shown and str(path) in shown
    assert main([*command, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["text"] == "Joint-3 ran out of memory." and found["specs"] == ["0a1b2c3d4e5f"]


@pytest.mark.parametrize(("question", "reason"), [("  ", "question is empty"), ("rank", "no notes yet")])
def test_search_without_notes_or_question_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], question: str, reason: str
) -> None:
    assert main(["notes", question, "--notes", str(tmp_path / "none")]) == 2
    assert reason in capsys.readouterr().err
