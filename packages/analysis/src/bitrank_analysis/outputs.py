"""Folders that users give for results: only files of an earlier build are replaced or removed.

A build is written into a temporary folder first, so a failed one leaves the earlier one as it was. The file
``.bitrank-files.json`` names the files of each kind of build in a folder.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.files import write_atomically

LIST = ".bitrank-files.json"
UNFINISHED = ".bitrank-unfinished-"


@contextmanager
def build_into(
    folder: Path,
    kind: str,
    of_older: Callable[[str], bool],
    removes: bool = True,
    also_earlier: Iterable[str] = (),
) -> Iterator[Path]:
    """Yield an empty folder whose files then replace the earlier build of ``kind`` in ``folder``.

    ``of_older`` tells whether a file that no list names, by its path in ``folder``, was written by a version
    without lists. If ``removes``, files of the earlier build and ``also_earlier`` that are not written again
    are removed. Raises :class:`AnalysisError`, and changes nothing, if a file of somebody else would be
    replaced.
    """
    with temporary_folder(folder) as making:
        yield making
        new = set(files_below(making))
        kinds = _listed(folder)
        known = set().union(*kinds.values())
        _check_own(folder, kind, sorted(new), lambda name: name in known or of_older(name))
        earlier = kinds.get(kind, set()) | set(also_earlier)
        stale = earlier - new if removes else set()
        _write_list(folder, {**kinds, kind: earlier | new})
        move_files(making, folder, sorted(new))
        remove_files(folder, stale)
        _write_list(folder, {**kinds, kind: (earlier | new) - stale})


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Create ``folder``, and yield a temporary one in it, which is removed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
    try:
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)


def files_below(folder: Path) -> list[str]:
    """The files in ``folder`` and below, by their paths in it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def move_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Move the files ``names`` of ``source`` to ``target``; no write remains that a full disk could stop."""
    for parent in {(target / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        (source / name).replace(target / name)


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove the files ``names``, and folders below ``folder`` that are empty then."""
    for path in (folder / name for name in names):
        if not path.is_dir():
            path.unlink(missing_ok=True)
    for parent in {(folder / name).parent for name in names} - {folder}:
        with contextlib.suppress(OSError):
            parent.rmdir()


def is_inside(name: str) -> bool:
    """Whether ``name`` is a path that cannot leave its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _listed(folder: Path) -> dict[str, set[str]]:
    """The files of each kind of earlier build; none without a readable list."""
    try:
        kinds = json.loads((folder / LIST).read_text(encoding="utf-8"))
        return {kind: set(filter(is_inside, names)) for kind, names in kinds.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_list(folder: Path, kinds: Mapping[str, Iterable[str]]) -> None:
    text = json.dumps({kind: sorted(kinds[kind]) for kind in sorted(kinds)}, indent=1)
    write_atomically(folder / LIST, text + "\n")


def _check_own(folder: Path, kind: str, names: Iterable[str], is_own: Callable[[str], bool]) -> None:
    """Raise :class:`AnalysisError` if one of ``names`` exists in ``folder`` and no build wrote it."""
    there = [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    foreign = [name for name in there if (folder / name).is_dir() or not is_own(name)]
    if foreign:
        raise AnalysisError(
            f"expected a new folder, or one of an earlier {kind}, got {folder}, where {foreign[0]} is of "
            f"something else ({len(foreign)} such) and would be replaced; move it away, or give another "
            "folder"
        )
