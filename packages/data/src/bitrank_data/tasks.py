"""Task sources by name: embedded, hub, or a user's file."""

from __future__ import annotations

import difflib
from pathlib import Path

from bitrank_data.embedded import EMBEDDED
from bitrank_data.errors import DataError
from bitrank_data.examples import Source
from bitrank_data.files import file_source
from bitrank_data.hub import HUB, hub_source

HUB_TASKS = tuple(HUB)
TASKS: tuple[str, ...] = (*EMBEDDED, *HUB_TASKS)


def open_task(name: str, folder: str | None = None) -> Source:
    """Source of task ``name``: one of :data:`TASKS`, or the path of a CSV, JSONL or Parquet file.

    ``folder`` is a local copy for the hub tasks. Raises :class:`DataError` with the nearest names for an
    unknown task.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name in HUB_TASKS:
        return hub_source(name, Path(folder) if folder else None)
    if "/" in name or Path(name).suffix:
        return file_source(Path(name))
    near = difflib.get_close_matches(name, TASKS, n=2) or TASKS
    raise DataError(
        f"unknown task {name!r}; nearest: {', '.join(near)} (or the path of a .csv, .jsonl or .parquet file)"
    )
