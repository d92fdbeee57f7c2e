"""Atomic writes: a reader of a report, table or figure sees the old or the new file, never a part of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``path``, flushed to the disk and then renamed. Text is encoded as UTF-8.

    A failed write (full disk) leaves the old file as it was, and no temporary file.
    """
    making = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with making.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)
