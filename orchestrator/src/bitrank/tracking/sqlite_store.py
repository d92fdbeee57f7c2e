"""The SQLite file of a store: atomic creation, detection of incomplete files, and migration.

MLflow creates its tables one after another, and cannot open a file whose creation was interrupted. So the
file is created under a temporary name and then renamed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from bitrank.errors import UserError, disk_problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.script import ScriptDirectory

_CORE = {"runs", "experiments", "metrics"}
_ENDINGS = ("", "-wal", "-shm", "-journal")
_GIVE_ANOTHER = "give another with --store"


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the SQLite file at ``path`` for reading; supports special characters and read-only disks."""
    with (
        readable_copy(path) as (file, options),
        closing(sqlite3.connect(f"{file.absolute().as_uri()}?{options}", uri=True)) as database,
    ):
        yield database


@contextmanager
def readable_copy(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file to open for reading ``path``, and the options of its SQLite URI.

    Reading a database in WAL mode creates a second file in its folder. If the folder is not writable, the
    file is read directly if its WAL is empty; otherwise a copy is read.
    """
    wal = path.with_name(path.name + "-wal")
    if _can_make_files(path.parent):
        yield path, "mode=ro"
    elif not wal.exists() or wal.stat().st_size == 0:
        yield path, "mode=ro&immutable=1"
    else:
        with tempfile.TemporaryDirectory(prefix="bitrank-store-") as folder:
            for one in (path, wal):
                shutil.copyfile(one, Path(folder) / one.name)
            yield Path(folder) / path.name, "mode=ro"


def _can_make_files(folder: Path) -> bool:
    try:
        writable = os.statvfs(folder).f_flag & os.ST_RDONLY == 0
    except (OSError, AttributeError):  # Windows has no statvfs
        writable = True
    return writable and os.access(folder, os.W_OK)


def has_store(path: Path) -> bool:
    """Whether ``path`` is a store; False if it does not exist, or was never complete and contains no run.

    Raises :class:`UserError` for a file of another program, and for a damaged store with runs.
    """
    if not path.exists() or path.stat().st_size == 0:
        return False
    try:
        with read_only(path) as database:
            tables = {
                row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            if tables and not tables & (_CORE | {"alembic_version"}):
                listed = ", ".join(sorted(tables)[:5])
                raise UserError(
                    f"{path} is a SQLite file but not an MLflow store (tables: {listed}); {_GIVE_ANOTHER}"
                )
            complete = tables >= _CORE | {"alembic_version"} and _count(database, "alembic_version") > 0
            used = "runs" in tables and _count(database, "runs") > 0
            sound = complete and _is_sound(database)
    except sqlite3.DatabaseError as error:
        if _is_incomplete(path):
            return False
        raise UserError(f"{path} is not an MLflow store: {error}; {_remedy(path)}") from error
    if sound or (complete and used):
        return True
    if used or _has_files(path):
        raise UserError(f"{path} is a damaged MLflow store; {_remedy(path)}")
    return False


def _count(database: sqlite3.Connection, table: str) -> int:
    return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _is_sound(database: sqlite3.Connection) -> bool:
    """Whether every page of a store without runs is valid; a store with runs is not checked."""
    if _count(database, "runs") > 0:
        return True
    return bool(database.execute("PRAGMA quick_check").fetchone()[0] == "ok")


def _is_incomplete(path: Path) -> bool:
    """Whether the unreadable file is a truncated SQLite file, in a folder without files of runs."""
    head = path.open("rb").read(16)
    return b"SQLite format 3\0".startswith(head) and not _has_files(path)


def _has_files(path: Path) -> bool:
    return any(any((path.parent / name).glob("*")) for name in ("artifacts", "work"))


def _remedy(path: Path) -> str:
    if _has_files(path):
        return f"restore a backup, or move {path.name} away and keep artifacts/, or {_GIVE_ANOTHER}"
    return _GIVE_ANOTHER


def make_store(path: Path, create: Callable[[Path], None]) -> None:
    """Create the SQLite file ``path``: call ``create`` with a temporary path, then rename. Hold the lock.

    An incomplete file at ``path`` is renamed to ``mlflow.db.incomplete``.
    """
    from bitrank_data import flush

    for old in path.parent.glob(f".{path.name}.*.new*"):  # of a killed process
        old.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        create(temporary)
        with closing(sqlite3.connect(temporary)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # persists; about halves the cost of a write
        flush(temporary)
        _move_incomplete(path)
        temporary.replace(path)
        flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)


def _move_incomplete(path: Path) -> None:
    if path.exists() and path.stat().st_size > 0:
        kept = path.with_name(f"{path.name}.incomplete")
        print(f"bitrank: {path} was incomplete and contained no run; creating it again", file=sys.stderr)
        path.replace(kept)
    for ending in _ENDINGS[1:]:  # SQLite would apply an old journal to the new file
        path.with_name(path.name + ending).unlink(missing_ok=True)


def migrate(path: Path, uri: str) -> None:
    """Migrate a store of an older MLflow to the installed schema, after a backup. Hold the store's lock.

    Raises :class:`UserError` if a newer MLflow wrote it, or the backup or the migration fails. The store is
    then unchanged; if that is impossible, the message names the backup.
    """
    from mlflow.version import VERSION

    with read_only(path) as database:
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    script = _revisions()
    if row[0] == script.get_current_head():
        return
    if row[0] not in {revision.revision for revision in script.walk_revisions()}:
        raise UserError(
            f"{path} was written by another MLflow than {VERSION}, which does not know its schema {row[0]}; "
            f"install a newer MLflow, or {_GIVE_ANOTHER}"
        )
    backup = _back_up(path, row[0])
    print(
        f"bitrank: {path} is of an older MLflow; migrating it, with a backup in {backup}",
        file=sys.stderr,
    )
    try:
        _upgrade(uri)
    except BaseException as error:  # SQLAlchemy, Alembic and SQLite raise their own; Ctrl-C restores too
        state = _restore(backup, path)
        if not isinstance(error, Exception):
            print(f"bitrank: the migration of {path} was interrupted; {state}", file=sys.stderr)
            raise
        raise UserError(
            f"{path} is of an older MLflow and cannot be migrated: {_reason(error)}; {state}; {_GIVE_ANOTHER}"
        ) from error


def _back_up(path: Path, revision: str) -> Path:
    """Copy the store to a new file beside it, which has its name only when it is complete.

    An earlier backup is kept: it may be the only copy of the runs. Raises :class:`UserError` if the copy
    cannot be written.
    """
    from bitrank_data import flush

    backup = path.with_name(f"{path.name}.schema-{revision}")
    for number in count(2):
        if not backup.exists():
            break
        backup = path.with_name(f"{path.name}.schema-{revision}.{number}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        _remove(temporary)
        _copy(path, temporary)
        flush(temporary)
        temporary.replace(backup)
        flush(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"{path} is of an older MLflow, and its backup before the migration cannot be written: "
            f"{_reason(error)}; it is unchanged; make space for a second copy of it, or {_GIVE_ANOTHER}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)
    return backup


def _restore(backup: Path, path: Path) -> str:
    """Copy ``backup`` over ``path`` and remove it; returns what is true of ``path`` then, in one clause."""
    try:
        _copy(backup, path)
    except sqlite3.Error as error:
        return (
            f"it may be changed in part, and putting its backup back failed too: {_reason(error)}; the runs "
            f"are in {backup}: move {path.name}, {path.name}-wal and {path.name}-shm away, and rename the "
            f"backup to {path.name}"
        )
    with contextlib.suppress(OSError):
        backup.unlink()  # otherwise every attempt would leave a copy
    return "it is unchanged"


def _copy(source: Path, target: Path) -> None:
    """Make ``target`` a copy of the SQLite file ``source``, in one transaction."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _remove(path: Path) -> None:
    """Remove the SQLite file ``path`` and the files that belong to it."""
    for ending in _ENDINGS:
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return disk_problem(error) or (str(error).splitlines() or [type(error).__name__])[0][:200]


def _revisions() -> ScriptDirectory:
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return ScriptDirectory.from_config(_get_alembic_config(""))


def _upgrade(uri: str) -> None:
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(uri)
    try:
        _upgrade_db(engine)
    finally:
        engine.dispose()
