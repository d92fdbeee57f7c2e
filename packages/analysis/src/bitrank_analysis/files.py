"""Names of files, and atomic writes.

A reader of a report, table or figure sees the old or the new file, never a part of one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_LONGEST = 230  # bytes of a name; file systems take 255, of which endings and temporary files need some


def name_of(kind: str, task: str) -> str:
    """The name of the figure or table ``kind`` of ``task``; one too long for a file is cut and has a hash."""
    name = f"{kind}-{task}"
    content = os.fsencode(name)
    if len(content) <= _LONGEST:
        return name
    return f"{content[: _LONGEST - 9].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:8]}"


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
