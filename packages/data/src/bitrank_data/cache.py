"""Cache folders, each built once, by one process at a time, and published atomically.

The cache is ``$BITRANK_CACHE`` or the platform's cache folder. A build writes into a temporary folder beside
the final path and renames it, so a crash or a full disk leaves no partial result. A file lock makes other
processes wait instead of building.

``.digest`` in each folder records size, modification time and sha256 of every file. Opening compares sizes
and times, and reads the files only if these differ; :func:`damaged` always reads them. A folder with changed
content is rebuilt.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from bitrank_data.errors import DataError

_RECORD = ".digest"  # without suffix .json, because the .json files of a weight folder enter its fingerprint
_Files = dict[str, tuple[int, int, str]]  # relative name → (bytes, modification time in ns, sha256)


def cache_dir() -> Path:
    """The cache folder; created if absent. Raises :class:`DataError` if it cannot be created."""
    path = Path(os.environ.get("BITRANK_CACHE") or user_cache_path("bitrank"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the cache folder {path}: {error.strerror}; set BITRANK_CACHE to a writable folder"
        ) from error
    return path


def build_once(place: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder ``place``; ``build(temporary folder)`` creates it if absent or changed.

    A folder with changed content (damaged cache, edited file) is deleted and rebuilt, with a line on stderr.
    Safe across processes. Raises :class:`DataError` if the cache cannot be written.
    """
    if is_built(place):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / f".{place.name}.lock"):
            if not is_built(place):
                if place.exists():
                    print(
                        f"bitrank: {place} has other content than was built; it is built again",
                        file=sys.stderr,
                    )
                _build(place, build)
    except OSError as error:
        raise _readable(error, place) from error
    return place


@cache
def code_digest() -> str:
    """Hash of this package's sources, so that another version of the code does not reuse its cache."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``path`` so that readers see the old or the new content, also after a power cut.

    Text is encoded as UTF-8.
    """
    making = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        making.write_bytes(content.encode() if isinstance(content, str) else content)
        flush(making)
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until ``path`` (a file, or the entries of a folder) is on the disk.

    Folders are skipped on Windows, which flushes their entries itself.
    """
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damaged() -> list[Path]:
    """Cache folders whose files differ from the built content; reads every byte of the cache."""
    records = sorted(cache_dir().glob(f"*/*/{_RECORD}"))
    return [record.parent for record in records if not _has_recorded_content(record.parent)]


def _build(place: Path, build: Callable[[Path], None]) -> None:
    """Build and publish ``place``; the caller holds its lock."""
    _remove_unfinished(place)
    making = place.parent / f".{place.name}.{secrets.token_hex(8)}"
    try:
        # With the mode of the umask, so that other users can read what is built. Inside, because a signal may
        # end the process right after this call.
        making.mkdir()
        build(making)
        _write(making)
        shutil.rmtree(place, ignore_errors=True)
        making.rename(place)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _remove_unfinished(place: Path) -> None:
    """Delete the temporary folders of builds of ``place`` that were killed; the caller holds its lock."""
    temporary = re.compile(re.escape(f".{place.name}.") + "[0-9a-f]{16}")
    for path in place.parent.iterdir():
        if temporary.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def is_built(place: Path) -> bool:
    """Whether :func:`build_once` finds its own content in ``place`` and will not build it.

    Compares sizes and modification times, and the content if only the times differ.
    """
    record = _read(place / _RECORD)
    if record is None:
        return False
    if {name: kept[:2] for name, kept in record.items()} == _states(place):
        return True
    if not _has_recorded_content(place):
        return False
    with contextlib.suppress(OSError):  # with a read-only cache the next call compares the content again
        _write(place)
    return True


def _has_recorded_content(place: Path) -> bool:
    """Whether the files in ``place`` have the digests of its record, whenever they were written."""
    record = _read(place / _RECORD)
    try:
        found = _digests(place)
    except OSError:
        return False
    recorded = {name: kept[2] for name, kept in (record or {}).items()}
    return record is not None and recorded == {name: state[2] for name, state in found.items()}


def _write(folder: Path) -> None:
    write_atomically(folder / _RECORD, json.dumps(_digests(folder), indent=1))


def _read(record: Path) -> _Files | None:
    """Files listed by ``record``; None if it is absent or damaged."""
    try:
        listed = json.loads(record.read_text())
        return {
            str(name): (int(size), int(changed), str(digest))
            for name, (size, changed, digest) in listed.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    """Size in bytes and modification time in ns of every file in ``folder``, by relative name."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith((_RECORD, f".{_RECORD}")):
            state = path.stat()
            found[path.relative_to(folder).as_posix()] = (state.st_size, state.st_mtime_ns)
    return found


def _digests(folder: Path) -> _Files:
    found = {}
    for name, (size, changed) in _states(folder).items():
        with (folder / name).open("rb") as file:
            found[name] = (size, changed, hashlib.file_digest(file, "sha256").hexdigest())
    return found


def _readable(error: OSError, place: Path) -> DataError:
    if error.errno == errno.ENOSPC:
        return DataError(
            f"the disk is full while writing {place}; free some space or set BITRANK_CACHE to another disk"
        )
    return DataError(
        f"cannot write {place}: {error.strerror or error}; set BITRANK_CACHE to a writable folder"
    )
