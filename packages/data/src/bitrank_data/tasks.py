"""Task sources by name: embedded, hub, or a user's file."""

from __future__ import annotations

import difflib
from pathlib import Path

from bitrank_data.convert_kind import as_kind
from bitrank_data.embedded import EMBEDDED
from bitrank_data.errors import DataError
from bitrank_data.examples import Source
from bitrank_data.files import FileOptions, file_source
from bitrank_data.hub import HUB, hub_source
from bitrank_data.readers import READERS
from bitrank_data.rows import quoted

HUB_TASKS = tuple(HUB)
TASKS: tuple[str, ...] = (*EMBEDDED, *HUB_TASKS)


def open_task(
    name: str,
    folder: str | None = None,
    options: FileOptions | None = None,
    commit: str | None = None,
    kind: str | None = None,
) -> Source:
    """Source of task ``name``: one of :data:`TASKS`, or the path of a user's file or folder of files.

    ``folder`` is a local copy for the hub tasks, ``commit`` that of their repository. ``options`` are those
    of the user's files. ``kind`` is one that the examples fit, if not the task's own
    (:func:`~bitrank_data.convert_kind.as_kind`). Raises :class:`DataError` with the nearest names for an
    unknown task, for options that are not used, and for a kind that the examples do not fit.
    """
    source = _source(name, folder, options, commit)
    return source if kind is None else as_kind(source, kind)


def _source(name: str, folder: str | None, options: FileOptions | None, commit: str | None) -> Source:
    if is_path(name):
        return file_source(Path(name), options)
    if options is not None and options.given:
        raise DataError(
            f"{', '.join(options.given)}: only for your own files, and {name} is not one; remove it"
        )
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name in HUB_TASKS:
        return hub_source(name, Path(folder) if folder else None, commit)
    near = difflib.get_close_matches(name, TASKS, n=2) or TASKS
    own = f"or a path: ./{name}" if Path(name).exists() else f"or the path of a {', '.join(READERS)} file"
    raise DataError(
        f"unknown task {quoted(name)}; nearest: {', '.join(near)} ({own}, or of a folder with them)"
    )


def is_path(name: str) -> bool:
    """Whether ``name`` is the path of a file or folder of the user, and no name of a task."""
    return name not in TASKS and ("/" in name or bool(Path(name).suffix))
