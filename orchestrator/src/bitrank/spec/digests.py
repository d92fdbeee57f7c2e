"""Content hashes of files, cached so that a folder of many gigabytes is read once and not by every command.

A cached hash is valid while no file is added, removed or changed: size, modification time, change time and
inode are equal. Programs cannot set the change time (``ctime``), so a copy with an old modification time is
detected.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitrank_data import DataError, cache_dir

# Two writes within one tick of a file system's clock have equal times, and some clocks tick every two
# seconds. The hash of a file that changed so recently is not cached.
_TICK = 2.0  # seconds


def content_digest(root: Path, counts: Callable[[Path], bool] = lambda _: True, deep: bool = True) -> str:
    """Hash the content of ``root`` to 64 hex digits (SHA-256).

    ``root`` is a file, or a folder: then the hash covers names and content of all files below it for which
    ``counts`` is true, or only of the files directly in it if ``deep`` is false. The path and name of
    ``root`` do not change the hash. Raises ``OSError`` when a file cannot be read.
    """
    files = _files(root, counts, deep)
    state = [[name, *_state_of(path)] for name, path in files.items()]
    entry_path = _entry_path(root)
    cached = _read(entry_path)
    if cached.get("state") == state:
        return str(cached["digest"])
    began = time.time()
    digest = _digest(root, files)
    # If a file changed while it was read, the hash belongs to neither state and is not cached.
    unchanged = state == [[name, *_state_of(path)] for name, path in files.items()]
    settled = all(began - max(path.stat().st_mtime, path.stat().st_ctime) > _TICK for path in files.values())
    if unchanged and settled:
        _write(entry_path, {"root": str(root), "state": state, "digest": digest})
    return digest


def _files(root: Path, counts: Callable[[Path], bool], deep: bool) -> dict[str, Path]:
    if root.is_file():
        return {"": root}
    paths = root.rglob("*") if deep else root.iterdir()
    found = {path.relative_to(root).as_posix(): path for path in paths if path.is_file() and counts(path)}
    return dict(sorted(found.items()))


def _state_of(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _digest(root: Path, files: dict[str, Path]) -> str:
    if root.is_file():
        return _file_digest(root).hex()
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name}\0".encode())
        digest.update(_file_digest(path))
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _entry_path(root: Path) -> Path | None:
    """The cache file for the hash of ``root``; None when the cache is not writable, which only costs time."""
    try:
        folder = cache_dir() / "digests"
        folder.mkdir(exist_ok=True)
    except (OSError, DataError):
        return None
    return folder / f"{hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]}.json"


def _read(entry_path: Path | None) -> dict[str, Any]:
    try:
        return dict(json.loads(entry_path.read_text(encoding="utf-8"))) if entry_path else {}
    except (OSError, ValueError):
        return {}


def _write(entry_path: Path | None, entry: dict[str, Any]) -> None:
    if entry_path is None:
        return
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(prefix=".", dir=entry_path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entry, file)
        Path(name).replace(entry_path)
