"""A SQLite file opened for reading, also on a read-only disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def readable_uri(path: Path) -> Iterator[str]:
    """The ``file:`` URI under which SQLite can read ``path`` inside the block.

    A database in WAL mode needs a file beside it even to be read. Where none can be made, the file is read as
    it is if all of it is in the main file; otherwise a copy is read.
    """
    wal = path.with_name(path.name + "-wal")
    if _can_make_files(path.parent):
        yield f"{path.as_uri()}?mode=ro"
    elif not wal.exists() or wal.stat().st_size == 0:
        yield f"{path.as_uri()}?mode=ro&immutable=1"
    else:
        with tempfile.TemporaryDirectory(prefix="bitrank-store-") as folder:
            for one in (path, wal):
                shutil.copyfile(one, Path(folder) / one.name)
            yield f"{(Path(folder) / path.name).as_uri()}?mode=ro"


def _can_make_files(folder: Path) -> bool:
    try:
        writable = os.statvfs(folder).f_flag & os.ST_RDONLY == 0
    except (OSError, AttributeError):  # Windows has no statvfs
        writable = True
    return writable and os.access(folder, os.W_OK)
