"""Open a SQLite file for reading, also on a read-only disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def readable_uri(path: Path) -> Iterator[str]:
    """Yield a ``file:`` URI with which SQLite can read ``path`` inside the block.

    SQLite needs to create a file next to a database in WAL mode even to read it. In a folder without write
    access, a database with an empty log is opened as immutable; otherwise a temporary copy is opened.
    """
    wal = path.with_name(path.name + "-wal")
    if _is_writable(path.parent):
        yield f"{path.as_uri()}?mode=ro"
    elif not wal.exists() or wal.stat().st_size == 0:
        yield f"{path.as_uri()}?mode=ro&immutable=1"
    else:
        with tempfile.TemporaryDirectory(prefix="bitrank-store-") as folder:
            for source in (path, wal):
                shutil.copyfile(source, Path(folder) / source.name)
            yield f"{(Path(folder) / path.name).as_uri()}?mode=ro"


def _is_writable(folder: Path) -> bool:
    try:
        writable = os.statvfs(folder).f_flag & os.ST_RDONLY == 0
    except (OSError, AttributeError):  # Windows has no statvfs
        writable = True
    return writable and os.access(folder, os.W_OK)
