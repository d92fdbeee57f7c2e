"""The files in a run's folder: written atomically, and verified before they are used.

``result.json`` is written last, after ``digests.json`` with the sha256 of every other final file and of
``result.json`` itself. A run is complete if all of them match; otherwise (power failure, disk error, edit) it
is incomplete and will be continued.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitrank_data import flush, write_atomically
from filelock import FileLock, Timeout

RESULT, DIGESTS, ADAPTER, LOCK = "result.json", "digests.json", "adapter", ".lock"
_CODE = "code.txt"  # the id of the code that made the files of a run
REQUESTED_PLAN = (
    "requested_plan.json"  # the plan of a planned arm, written before the training process starts
)
PLAN_DIGEST = "requested_plan.sha256"
_SEALED = (
    "spec.json",
    "plan.json",
    "zero_shot.json",
    "ranks.json",
    "predictions.parquet",
    "continuations.json",
)


def write_code(folder: Path, code: str) -> None:
    """Record ``code``, the id of the code that makes the files in ``folder``."""
    write_atomically(folder / _CODE, code)


def is_of_code(folder: Path, code: str) -> bool:
    """Return whether the code of this id made the files in ``folder``; false if the id was not recorded."""
    try:
        return (folder / _CODE).read_text(encoding="utf-8") == code
    except (OSError, UnicodeDecodeError):
        return False


def seal(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the digests and ``result.json``, which marks the run in ``folder`` as complete."""
    content = json.dumps(result, indent=1).encode()
    digests = {name: _sha256(folder / name) for name in _final_files(folder)}
    for name in digests:
        flush(folder / name)
    digests[RESULT] = hashlib.sha256(content).hexdigest()
    write_atomically(folder / DIGESTS, json.dumps(digests, indent=1))
    write_atomically(folder / RESULT, content)


def seal_requested_plan(folder: Path) -> None:
    """Write the digest of ``requested_plan.json``, without which the plan is made again."""
    write_atomically(folder / PLAN_DIGEST, _sha256(folder / REQUESTED_PLAN))


def has_requested_plan(folder: Path) -> bool:
    """Return whether ``folder`` has the plan of its planned arm, with the content that was written."""
    try:
        return (folder / PLAN_DIGEST).read_text() == _sha256(folder / REQUESTED_PLAN)
    except (OSError, UnicodeDecodeError):
        return False


def result_of(folder: Path) -> dict[str, Any] | None:
    """Return the figures of the run in ``folder``; None if it is incomplete or its figures were changed."""
    digests = _read_json(folder / DIGESTS)
    try:
        content = (folder / RESULT).read_bytes()
    except OSError:
        return None
    if digests.get(RESULT) != hashlib.sha256(content).hexdigest():
        return None
    return dict(json.loads(content))


def damage(folder: Path, is_needed: Callable[[str], bool] = lambda name: True) -> str | None:
    """Return the first problem in the files of the complete run in ``folder``; None if all needed files are
    intact.
    """
    digests = _read_json(folder / DIGESTS)
    if RESULT not in digests:
        return f"{DIGESTS} is missing or damaged"
    for name, digest in digests.items():
        if not is_needed(name):
            continue
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != digest:
            return f"{name} has other content than was written"
    return None


def is_locked(folder: Path) -> bool:
    """Whether a process runs the run in ``folder``. A folder that cannot be written belongs to no run."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def is_complete(folder: Path) -> bool:
    """Return whether the run in ``folder`` ended and all its files are intact."""
    return (folder / RESULT).is_file() and damage(folder) is None


def _final_files(folder: Path) -> list[str]:
    adapter = sorted(path for path in (folder / ADAPTER).rglob("*") if path.is_file())
    inside = [path.relative_to(folder).as_posix() for path in adapter]
    return [name for name in _SEALED if (folder / name).is_file()] + inside


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
