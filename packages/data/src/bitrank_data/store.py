"""Things built once into a cache folder, by one process at a time, whole or not at all.

The cache is ``$BITRANK_CACHE`` or the platform's cache folder. A thing is built in a temporary folder beside its place and
renamed into it, so a crash or a full disk leaves nothing half done; a file lock makes other processes wait instead of build.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from bitrank_data.errors import DataError


def cache_dir() -> Path:
    """The cache folder, made if it is not there. Raises :class:`DataError` when it cannot be."""
    path = Path(os.environ.get("BITRANK_CACHE") or user_cache_path("bitrank"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the cache folder {path}: {error.strerror}; set BITRANK_CACHE to a writable folder") from error
    return path


def build_once(place: Path, build: Callable[[Path], None], valid: Callable[[Path], bool] = Path.is_dir) -> Path:
    """``place``, a folder, made by ``build(temporary folder)`` unless a valid one is there.

    A place that is there but not ``valid`` (a broken cache) is thrown away and rebuilt. Safe between processes.
    """
    if valid(place):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / f".{place.name}.lock"):
            if not valid(place):
                _build(place, build)
    except OSError as error:
        raise _readable(error, place) from error
    return place


def _build(place: Path, build: Callable[[Path], None]) -> None:
    making = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        build(making)
        shutil.rmtree(place, ignore_errors=True)
        making.rename(place)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _readable(error: OSError, place: Path) -> DataError:
    if error.errno == errno.ENOSPC:
        return DataError(f"the disk is full while writing {place}; free some space or set BITRANK_CACHE to another disk")
    return DataError(f"cannot write {place}: {error.strerror or error}; set BITRANK_CACHE to a writable folder")
