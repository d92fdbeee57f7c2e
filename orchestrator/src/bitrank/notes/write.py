"""Write findings as notes."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from bitrank.notes.note import Note, write_note


class Found(Protocol):
    """A finding: :class:`bitrank_analysis.report.Finding`, which only commands may import."""

    @property
    def kind(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def configs(self) -> tuple[str, ...]: ...
    @property
    def specs(self) -> tuple[str, ...]: ...
    @property
    def links(self) -> tuple[str, ...]: ...


def write_findings(findings: Iterable[Found], experiment: str, folder: Path) -> list[Path]:
    """Write ``findings`` of ``experiment`` into ``folder``; return the notes that are new.

    Raises :class:`~bitrank.errors.UserError` if the folder is not writable.
    """
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    notes = [
        Note(
            kind=one.kind,
            title=one.title,
            day=day,
            experiment=experiment,
            task=one.task,
            configs=one.configs,
            specs=one.specs,
            links=one.links,
            body=one.text,
        )
        for one in findings
    ]
    written = [write_note(note, folder) for note in notes]
    return [path for path in written if path is not None]
