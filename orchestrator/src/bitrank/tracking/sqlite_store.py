"""The SQLite file of a store: made aside and renamed, recognized when half made, migrated when an older
MLflow wrote it.

MLflow creates its tables in place, one after another, and can never open a file again whose creation was cut
off.
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
from pathlib import Path
from typing import TYPE_CHECKING

from bitrank.errors import UserError, disk_problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.script import ScriptDirectory

_CORE = {"runs", "experiments", "metrics"}
_BESIDE = ("", "-wal", "-shm", "-journal")
_OTHER = "give another with --store"


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """The SQLite file at ``path`` opened for reading, whatever characters its path has, also on a read-only
    disk.
    """
    with (
        readable_copy(path) as (place, options),
        closing(sqlite3.connect(f"{place.absolute().as_uri()}?{options}", uri=True)) as database,
    ):
        yield database


@contextmanager
def readable_copy(path: Path) -> Iterator[tuple[Path, str]]:
    """The file to open for reading ``path``, and the options of its SQLite URI.

    A database in WAL mode needs a file beside it even to be read. Where none can be made, the file is read as
    it is if all of it is in the main file; otherwise a copy is read.
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
    """Whether there is a store at ``path``; False when nothing is there, or only the beginning of one that
    never held a run.

    Raises :class:`UserError` for a file of another program and for a damaged store that has held runs.
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
                raise UserError(f"{path} is a SQLite file but no MLflow store (tables: {listed}); {_OTHER}")
            complete = tables >= _CORE | {"alembic_version"} and _count(database, "alembic_version") > 0
            used = "runs" in tables and _count(database, "runs") > 0
            sound = complete and _is_sound(database)
    except sqlite3.DatabaseError as error:
        if _is_begun(path):
            return False
        raise UserError(f"{path} is no MLflow store: {error}; {_remedy(path)}") from error
    if sound or (complete and used):
        return True
    if used or _holds_files(path):
        raise UserError(f"{path} is a damaged MLflow store; {_remedy(path)}")
    return False


def _count(database: sqlite3.Connection, table: str) -> int:
    return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _is_sound(database: sqlite3.Connection) -> bool:
    """Whether every page of a store without runs is there; one with runs is not read through."""
    if _count(database, "runs") > 0:
        return True
    return bool(database.execute("PRAGMA quick_check").fetchone()[0] == "ok")


def _is_begun(path: Path) -> bool:
    """Whether the unreadable file at ``path`` is the torn beginning of a SQLite file beside which no run has
    left anything.
    """
    head = path.open("rb").read(16)
    return b"SQLite format 3\0".startswith(head) and not _holds_files(path)


def _holds_files(path: Path) -> bool:
    return any(any((path.parent / name).glob("*")) for name in ("artifacts", "work"))


def _remedy(path: Path) -> str:
    if _holds_files(path):
        return f"put a backup in its place, or move {path.name} away and keep artifacts/, or {_OTHER}"
    return _OTHER


def make_store(path: Path, create: Callable[[Path], None]) -> None:
    """Make the SQLite file ``path`` by ``create(file aside)`` and rename it into its place. Hold the store's
    lock.

    A half-made one that is there is kept as ``mlflow.db.half-made``.
    """
    from bitrank_data import flush

    for old in path.parent.glob(f".{path.name}.*.new*"):  # of a process that was killed
        old.unlink(missing_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        create(aside)
        with closing(sqlite3.connect(aside)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # persists; about halves the cost of a write
        flush(aside)
        _set_aside(path)
        aside.replace(path)
        flush(path.parent)
    finally:
        for ending in _BESIDE:
            with contextlib.suppress(OSError):
                aside.with_name(aside.name + ending).unlink(missing_ok=True)


def _set_aside(path: Path) -> None:
    if path.exists() and path.stat().st_size > 0:
        kept = path.with_name(f"{path.name}.half-made")
        print(f"bitrank: {path} was only half made and never held a run; it is made again", file=sys.stderr)
        path.replace(kept)
    for ending in _BESIDE[1:]:  # a journal that stays would be applied to the new file
        path.with_name(path.name + ending).unlink(missing_ok=True)


def migrate(path: Path, uri: str) -> None:
    """Bring a store that an older MLflow wrote to the installed one's schema, after a copy. Hold the store's
    lock.

    Raises :class:`UserError` when a newer MLflow wrote it, or when the migration fails; the store is then as
    it was.
    """
    from mlflow.version import VERSION

    with read_only(path) as database:
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    script = _revisions()
    if row[0] == script.get_current_head():
        return
    if row[0] not in {revision.revision for revision in script.walk_revisions()}:
        raise UserError(
            f"{path} was written by another MLflow than {VERSION}, whose schema {row[0]} it does not know; "
            f"install a newer MLflow, or {_OTHER}"
        )
    backup = path.with_name(f"{path.name}.schema-{row[0]}")
    try:
        with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(backup)) as copy:
            old.backup(copy)
        print(
            f"bitrank: {path} is of an older MLflow; it is migrated, and {backup} keeps it as it was",
            file=sys.stderr,
        )
        _upgrade(uri)
    except Exception as error:  # SQLAlchemy, Alembic and SQLite raise their own kinds
        _restore(backup, path)
        said = disk_problem(error) or str(error).splitlines()[0][:200]
        raise UserError(
            f"{path} is of an older MLflow and cannot be migrated: {said}; it is unchanged; {_OTHER}"
        ) from error


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


def _restore(backup: Path, path: Path) -> None:
    with (
        contextlib.suppress(sqlite3.Error),
        closing(sqlite3.connect(backup)) as copy,
        closing(sqlite3.connect(path)) as broken,
    ):
        copy.backup(broken)
