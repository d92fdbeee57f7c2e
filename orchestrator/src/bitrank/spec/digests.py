"""Hashes of files by content, remembered so that a folder of many gigabytes is read once and not at every
command.

A remembered hash counts as long as no file was added, removed or touched: its size, times of modification and
of change, and inode are the same. The time of change (``ctime``) cannot be set by programs, so a copy that
keeps the old time of modification is noticed.
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

# Two writes within one tick of a file system's clock leave the same times, and some clocks tick every two
# seconds. A hash of a file that was touched so recently is not remembered.
_TICK = 2.0  # seconds


def content_digest(root: Path, counts: Callable[[Path], bool] = lambda _: True, deep: bool = True) -> str:
    """64 hex digits over the content of ``root``: a file, or all files below a folder for which ``counts`` is
    true, with their names; without ``deep`` only the files directly in it.

    It does not depend on where ``root`` is or what it is called. Raises ``OSError`` when something cannot be
    read.
    """
    files = _files(root, counts, deep)
    state = [[name, *_state_of(path)] for name, path in files.items()]
    place = _place(root)
    remembered = _read(place)
    if remembered.get("state") == state:
        return str(remembered["digest"])
    began = time.time()
    digest = _digest(root, files)
    # What changed while it was read belongs to no single state.
    unchanged = state == [[name, *_state_of(path)] for name, path in files.items()]
    settled = all(began - max(path.stat().st_mtime, path.stat().st_ctime) > _TICK for path in files.values())
    if unchanged and settled:
        _write(place, {"root": str(root), "state": state, "digest": digest})
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


def _place(root: Path) -> Path | None:
    """Where the hash of ``root`` is remembered; None when there is no cache to write to, which only costs
    time.
    """
    try:
        folder = cache_dir() / "digests"
        folder.mkdir(exist_ok=True)
    except (OSError, DataError):
        return None
    return folder / f"{hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]}.json"


def _read(place: Path | None) -> dict[str, Any]:
    try:
        return dict(json.loads(place.read_text(encoding="utf-8"))) if place else {}
    except (OSError, ValueError):
        return {}


def _write(place: Path | None, entry: dict[str, Any]) -> None:
    if place is None:
        return
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(prefix=".", dir=place.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entry, file)
        Path(name).replace(place)
