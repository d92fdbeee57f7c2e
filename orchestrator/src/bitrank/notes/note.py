"""One note: a finding of a study as Markdown with front matter, in a file that is never edited afterwards.

The file's name is the day and the hash of the content without the day. The same finding is therefore written
once, however often the report is made, and a finding that has changed becomes another note.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from bitrank_data import write_atomically

from bitrank.errors import UserError

_FRONT = re.compile(r"\A---\n(?P<front>.*?)\n---\n(?P<body>.*)\Z", re.DOTALL)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes a fifth of the time
_LISTS = ("configs", "specs", "links")
_TEXTS = ("kind", "title", "day", "experiment", "task")


@dataclass(frozen=True)
class Note:
    """``specs`` are the ids of the runs that the finding is about, ``links`` their pages in MLflow.

    ``kind`` is verdict, plan, surprise or failure; ``body`` is Markdown without the title.
    """

    kind: str
    title: str
    day: str
    experiment: str
    task: str
    configs: tuple[str, ...]
    specs: tuple[str, ...]
    links: tuple[str, ...]
    body: str

    @property
    def digest(self) -> str:
        """Hash of everything but the day and the links, which depend on where MLflow runs."""
        content = (self.kind, self.title, self.experiment, self.task, self.configs, self.specs, self.body)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:12]

    @property
    def paragraphs(self) -> list[str]:
        """The texts that a search compares with a question; tables are left out."""
        parts = (part.strip() for part in self.body.split("\n\n"))
        return [part for part in parts if part and not part.startswith("|")]


def write_note(note: Note, folder: Path) -> Path | None:
    """Write ``note`` into ``folder``; return its path, or None if the folder has it already.

    Raises :class:`UserError` if the folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob(f"*-{note.digest}.md")):
            return None
        path = folder / f"{note.day}-{note.kind}-{note.digest}.md"
        write_atomically(path, _markdown(note))
    except OSError as error:
        raise UserError(
            f"expected a folder to write notes to, got {folder}: {error.strerror}; give another with --notes"
        ) from error
    return path


def read_note(path: Path) -> Note:
    """Read the note at ``path``. Raises :class:`UserError` if it is damaged."""
    try:
        found = _FRONT.match(path.read_text(encoding="utf-8"))
        front: Any = yaml.load(found["front"], _LOADER) if found else None  # noqa: S506 - a safe loader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a note: {error}; restore or delete it") from error
    if found is None or not isinstance(front, dict):
        raise UserError(f"{path} is no note: it has no front matter between lines of ---; delete or move it")
    fields: dict[str, Any] = {key: str(front.get(key, "")) for key in _TEXTS}
    fields |= {key: tuple(map(str, front.get(key) or ())) for key in _LISTS}
    _, _, body = found["body"].partition("\n\n")  # after the heading, which repeats the title
    return Note(**fields, body=body.strip())


def read_notes(folder: Path) -> dict[Path, Note]:
    """All notes of ``folder`` by path, oldest first.

    Raises :class:`UserError` if the folder does not exist or a note is damaged.
    """
    if not folder.is_dir():
        raise UserError(
            f"there are no notes yet: {folder} does not exist; `bitrank report` writes the findings of a "
            "finished study"
        )
    return {path: read_note(path) for path in sorted(folder.glob("*.md"))}


def _markdown(note: Note) -> str:
    front = {key: getattr(note, key) for key in _TEXTS}
    front |= {key: list(getattr(note, key)) for key in _LISTS}
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n# {note.title}\n\n{note.body}\n"
