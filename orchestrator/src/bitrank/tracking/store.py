"""The MLflow store: its locations, creation under a lock, and checks before runs start.

Two processes that create a SQLite store at the same time damage it, so it is created here, before any run
starts (see :mod:`bitrank.tracking.sqlite_store`). The default store is ``runs/mlflow.db`` with artifacts in
``runs/artifacts``; a URI names another store, such as a tracking server.
"""

from __future__ import annotations

import os
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from bitrank.errors import UserError, disk_problem, masked, masked_uri
from bitrank.tracking.moved_store import follow_store
from bitrank.tracking.sqlite_store import has_store, make_store, migrate

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
_SQLITE = ("sqlite:///", "sqlite+pysqlite:///")
_SERVER = ("http://", "https://")
# Percent-decoding does not change a path of only these characters, so its URI needs no quoting.
_PLAIN = re.compile(r"[\w/.~@+,=: -]*", re.ASCII)


@dataclass(frozen=True)
class Store:
    """The locations of one store. No other code parses or builds a ``sqlite:///`` URI.

    ``uri`` is MLflow's tracking URI, quoted once. ``database`` is the SQLite file and ``artifact_uri`` the
    ``file://`` URI of the artifact folder; both are None for a server, which has its own settings. ``work``
    is the folder of the files of runs in progress.
    """

    uri: str
    database: Path | None
    artifact_uri: str | None
    work: Path

    @property
    def shown(self) -> str:
        """``uri`` with masked secrets, for messages."""
        return self.uri if self.database else masked_uri(self.uri)

    @classmethod
    def parse(cls, text: str) -> Store:
        """Parse a folder, or a ``sqlite:///``, ``http://`` or ``https://`` URI.

        The name of a folder is literal, special characters included. A SQLite URI is parsed as in MLflow.
        Raises :class:`UserError` for any other URI.
        """
        if text.startswith(_SERVER):
            if re.search(r"\s", text):  # messages of libraries, which repeat it, could not be masked
                raise UserError(
                    f"cannot use the store {masked_uri(text)!r}: expected a URI without spaces; write %20"
                )
            return cls(text, None, None, Path("runs").resolve() / "work")
        if text.startswith(_SQLITE):
            return cls._of_database(_database_of(text))
        if "://" in text:
            expected = ", ".join(("sqlite:///", *_SERVER))
            raise UserError(
                f"cannot use the store {masked_uri(text)!r}; "
                f"expected a folder or a URI that starts with {expected}"
            )
        return cls._of_database(Path(text).resolve() / "mlflow.db")

    @classmethod
    def _of_database(cls, path: Path) -> Store:
        # MLflow also percent-decodes file paths, so artifacts need a file:// URI with quoted characters.
        return cls(_uri_of(path), path, (path.parent / "artifacts").as_uri(), path.parent / "work")


def _uri_of(path: Path) -> str:
    text = str(path)
    if _PLAIN.fullmatch(text):
        return f"sqlite:///{text}"
    from sqlalchemy.engine import URL, make_url

    # SQLAlchemy quotes exactly the characters that it unquotes. If the URI names the driver, MLflow does not
    # create the parent folder; otherwise it would create a folder with the quoted name.
    uri = URL.create("sqlite+pysqlite", database=text).render_as_string()
    if make_url(uri).database != text:  # before version 2.1 a question mark ended the path
        raise UserError(f"cannot use the store {text!r}: its path needs SQLAlchemy 2.1; update it or move it")
    return uri


def _database_of(uri: str) -> Path:
    from sqlalchemy.engine import make_url

    path = make_url(uri).database
    if not path or path == ":memory:":
        raise UserError(
            f"cannot use the store {uri!r}: it names no file; "
            "expected sqlite:///FILE, such as sqlite:///runs/mlflow.db"
        )
    if path.startswith("file:"):
        raise UserError(
            f"cannot use the store {uri!r}: SQLite's own file: URIs are not supported; "
            "give the folder of mlflow.db"
        )
    return Path(path).resolve()


def open_store(store: str, *, for_runs: bool = False) -> MlflowClient:
    """Open a client for ``store`` (see :meth:`Store.parse`); a SQLite file is created if it does not exist.

    ``for_runs``: files of runs will be written, beside the SQLite file also if it was moved. A command that
    only reads changes no places: the store may be in use under another path, in a container.
    Raises :class:`UserError` if the store cannot be written, is not an MLflow store, or does not answer.
    """
    parsed = Store.parse(store)
    path = parsed.database
    if path is not None:
        _make_folder(path)
    import logging

    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    if path is None:
        return _checked(MlflowClient(parsed.uri), parsed.shown)
    try:
        with FileLock(path.with_suffix(".lock")):
            if not has_store(path):
                make_store(path, _create)
            migrate(path, parsed.uri)
            if for_runs and parsed.artifact_uri is not None:
                follow_store(path, parsed.artifact_uri)
            return _checked(MlflowClient(parsed.uri), parsed.shown)
    except (OSError, sqlite3.Error) as error:
        raise UserError(_cannot_write(path, disk_problem(error) or str(error))) from error


def _create(path: Path) -> None:
    from mlflow import MlflowClient

    client = _checked(MlflowClient(_uri_of(path)), str(path))
    client._tracking_client.store.engine.dispose()  # closes the file, because it is renamed afterwards


def _cannot_write(path: Path, why: str) -> str:
    return f"cannot write the store {path}: {why}; give another with --store"


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("ab"):
            pass
    except OSError as error:
        raise UserError(_cannot_write(path, disk_problem(error) or str(error.strerror))) from error


def _checked(client: MlflowClient, shown: str) -> MlflowClient:
    """Return ``client``. Raises :class:`UserError` if its store does not answer."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.exceptions import MlflowException

    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        reason = disk_problem(error) or masked(str(error).splitlines()[0])[:200]
        raise UserError(f"the store {shown} does not answer: {reason}") from None
    return client
