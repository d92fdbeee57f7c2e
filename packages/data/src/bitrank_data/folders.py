"""Files of a task: one file, a folder with one or more files for each split, and a file for testing."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bitrank_data.errors import DataError
from bitrank_data.examples import SPLITS
from bitrank_data.readers import READERS
from bitrank_data.rows import shown
from bitrank_data.splitting import TEST, TRAIN, VALIDATION

WHOLE = "whole"  # a file that is split by hash
# Names of files in a folder, and the split. The number of a part may follow.
_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
}
# ``train``, ``train-2`` or ``train-00000-of-00002``, with the hash that the hub appends. Other words after
# the name, as in ``train_old``, may mean anything.
_PART = re.compile(r"(?P<name>[a-z]+)([-_.]?\d+([-_.]of[-_.]\d+(-[0-9a-f]{16})?)?)?")
_TICK = 2.0  # seconds; a file that was changed so recently may change again within one tick of its clock
_DIGESTS: dict[tuple[str, int, int, int, int], bytes] = {}  # a study opens the same file for every run


@dataclass(frozen=True)
class TaskFiles:
    """Files of a task by split; :data:`WHOLE` is split by hash. ``others`` are files that are not used."""

    by_split: Mapping[str, tuple[Path, ...]]
    others: tuple[str, ...] = ()

    @property
    def are_split(self) -> bool:
        """Whether the user made the test split."""
        return TEST in self.by_split

    def all(self) -> Iterator[tuple[str, Path]]:
        for split, paths in self.by_split.items():
            for path in paths:
                yield split, path

    def digest(self) -> str:
        """SHA-256 of one file, or of the splits and digests of several files in their order."""
        parts = list(self.all())
        if len(parts) == 1:
            return _digest_of(parts[0][1]).hex()
        digest = hashlib.sha256()
        for split, path in parts:
            digest.update(f"{split}\0".encode() + _digest_of(path))
        return digest.hexdigest()


def task_files(path: Path, test_file: Path | None = None) -> TaskFiles:
    """Files of the task at ``path``, a file or a folder. Raises :class:`DataError` for another path."""
    if _is_folder(path):
        found = _in_folder(path, has_test=test_file is not None)
    else:
        _check_file(path)
        found = TaskFiles({WHOLE if test_file is None else TRAIN: (path,)})
    if test_file is None:
        return found
    if TEST in found.by_split:
        raise DataError(f"{path} has a test split already; remove it, or do not give the file {test_file}")
    if _is_folder(test_file):
        raise DataError(f"{test_file} is a folder; give a file as the test file")
    _check_file(test_file)
    return TaskFiles({**found.by_split, TEST: (test_file,)}, found.others)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # such as a name that is too long for the file system
        raise DataError(f"cannot read {path.name[:60]!r}: {error.strerror}; give another path") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        problem = "it is no regular file" if path.exists() else "there is no such file"
        raise DataError(f"cannot read {path}: {problem}")
    if path.suffix.lower() not in READERS:
        suffix = path.suffix or "no suffix"
        raise DataError(f"{path.name}: expected one of {', '.join(READERS)}, got {suffix!r}")


def _in_folder(folder: Path, has_test: bool) -> TaskFiles:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in READERS and path.is_file())
    by_split: dict[str, tuple[Path, ...]] = {}
    others = []
    for path in files:
        part = _PART.fullmatch(path.stem.lower())
        split = _NAMES.get(part["name"]) if part else None
        if split is not None:
            by_split[split] = (*by_split.get(split, ()), path)
        else:
            others.append(path.name)
    missing = [split for split in (TRAIN, TEST) if split not in by_split and not (split == TEST and has_test)]
    if missing:
        found = shown([path.name for path in files]) or f"no {', '.join(READERS)} file"
        expected = (
            "a folder needs files called train and test, or train-0, train-1, … (validation may be missing)"
        )
        raise DataError(f"{folder} is a folder without a file for {missing[0]}: {expected}, found {found}")
    ordered = {split: by_split[split] for split in SPLITS if split in by_split}
    return TaskFiles(ordered, tuple(others))


def _digest_of(path: Path) -> bytes:
    """SHA-256 of a file, read once while it is unchanged."""
    try:
        state = path.stat()
        key = (str(path.absolute()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
        if key in _DIGESTS:
            return _DIGESTS[key]
        began = time.time()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if began - max(state.st_mtime, state.st_ctime) > _TICK:
        _DIGESTS[key] = digest
    return digest
