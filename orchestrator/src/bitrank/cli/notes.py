"""``bitrank notes``: search the findings of past studies by meaning."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank.cli.arguments import file_path, whole
from bitrank.cli.options import add_command
from bitrank.errors import UserError, is_user_error

if TYPE_CHECKING:  # `bitrank --help` does not import torch
    from bitrank.notes.search import Passage

NOTES = """examples:
  bitrank notes "does rank help at 3 bits"
  bitrank notes "which arms failed" --count 10
  bitrank notes "planned against QLoRA" --json
`bitrank report`, `matrix` and `study` write the findings of a finished study into the folder, one Markdown
file each, and never change a file afterwards."""
_WIDTH = 100


def add_notes(commands: Any) -> None:
    parser = add_command(commands, "notes", "search the findings of past studies by meaning", NOTES, _notes)
    parser.add_argument("question", help="a question or a few words")
    parser.add_argument("--count", type=whole(), default=5, help="passages to show (default: %(default)s)")
    add_folder(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of notes."""
    parser.add_argument(
        "--notes",
        type=file_path,
        default=Path(".memory"),
        metavar="FOLDER",
        help="folder of the notes on findings (default: .memory)",
    )


def keep_findings(store: str, profile: str, folder: Path, planning: Path | None = None) -> None:
    """Write the findings of a finished study into ``folder`` and print how many are new.

    ``planning`` is ``planning.json`` of a study, with the learning rates that it chose.
    A study whose findings cannot be written is finished all the same, so the reason is only printed.
    """
    if is_served(store):
        print(f"notes: not written: {served_advice(f'bitrank-{profile}')}")
        return
    from bitrank_analysis import load_study, open_store, read_planning
    from bitrank_analysis.report import collect

    try:
        rates = read_planning([planning]).rates if planning else None
        study = load_study(open_store(store), f"bitrank-{profile}", rates)
        written = write_notes(study, collect(study), folder)
    except Exception as error:
        if not is_user_error(error):
            raise
        print(f"notes: not written: {error}")
        return
    if written:
        print(f"notes: {len(written)} new in {folder}")


def is_served(store: str) -> bool:
    """Whether ``store`` is a tracking server: the analysis reads the database that is behind it."""
    from bitrank.tracking.store import Store

    return Store.parse(store).database is None


def served_advice(experiment: str, planning: Path | None = None) -> str:
    """How to read the results of ``experiment``, and of the study in ``planning``, behind a server."""
    written, of_study = ("report", f" --planning {planning}") if planning else ("report and notes", "")
    return (
        f"a tracking server has no tables to read. The runs are in its database; {written}: bitrank "
        f"report --experiment {experiment}{of_study} --store postgresql://USER@HOST/DATABASE (or the folder "
        "of its mlflow.db) --artifacts FOLDER (its --artifacts-destination, mounted or copied)"
    )


def write_notes(study: Any, report: Any, folder: Path) -> list[Path]:
    """Write the findings of ``report`` into ``folder``; return the notes that are new.

    A report with a notice has none, because its numbers mean nothing (profile smoke). Raises
    :class:`UserError` if the folder is not writable.
    """
    from bitrank_analysis.report import findings

    from bitrank.notes.write import write_findings

    return [] if report.notice else write_findings(findings(study, report), study.experiment, folder)


def _notes(arguments: argparse.Namespace) -> int:
    if not arguments.question.strip():
        raise UserError('the question is empty; give a few words, such as "does rank help at 3 bits"')
    from bitrank.notes.note import read_notes
    from bitrank.notes.search import search

    found = search(read_notes(arguments.notes), arguments.question, arguments.count)
    print(json.dumps([_as_data(one) for one in found], indent=1) if arguments.json else _text(found))
    return 0


def _as_data(passage: Passage) -> dict[str, Any]:
    note = passage.note
    return {
        "text": passage.text,
        "score": passage.score,
        "file": str(passage.path),
        "kind": note.kind,
        "title": note.title,
        "day": note.day,
        "experiment": note.experiment,
        "task": note.task,
        "configs": list(note.configs),
        "specs": list(note.specs),
        "links": list(note.links),
    }


def _text(found: list[Passage]) -> str:
    if not found:
        return "The folder has no notes."
    return "\n\n".join(_block(one) for one in found)


def _block(passage: Passage) -> str:
    note = passage.note
    head = f"{note.title} ({note.day}, {note.experiment})"
    lines = textwrap.wrap(
        passage.text, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False
    )
    runs = (
        [f"  runs: {', '.join(note.specs[:4])}{', …' if len(note.specs) > 4 else ''}"] if note.specs else []
    )
    link = [f"  {note.links[0]}"] if note.links else []
    return "\n".join([head, *lines, *runs, *link, f"  {passage.path}"])
