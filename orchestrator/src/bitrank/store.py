"""The MLflow store: made once under a lock, checked before anything runs.

Two processes that open a fresh SQLite store together break it, so it is made here, before any run starts. The default store is
``runs/mlflow.db`` with artifacts in ``runs/artifacts``; a URI names another, such as a tracking server.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from bitrank.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
_SCHEMES = ("sqlite:///", "http://", "https://")


def open_store(store: str) -> MlflowClient:
    """A client for ``store``: a folder, or a ``sqlite:///``, ``http://`` or ``https://`` URI. A new SQLite store is made.

    Raises :class:`UserError` when the store cannot be written, is no MLflow store, or no server answers.
    """
    uri = store_uri(store)
    path = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if path is not None:
        _make_folder(path)
    import logging

    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    if path is None:
        return _reached(MlflowClient(uri), uri)
    with FileLock(path.with_suffix(".lock")):
        check_file(path)
        client = _reached(MlflowClient(uri), uri)
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA journal_mode=WAL")  # persists; about halves the cost of a write
    return client


def store_uri(store: str) -> str:
    """The MLflow URI of ``store``; a plain path is the folder that holds ``mlflow.db``."""
    if store.startswith(_SCHEMES):
        return store
    if "://" in store:
        raise UserError(f"cannot use the store {store!r}; expected a folder or a URI that starts with {', '.join(_SCHEMES)}")
    return f"sqlite:///{Path(store).resolve() / 'mlflow.db'}"


def artifact_root(store: str) -> str | None:
    """Where a local store keeps artifacts: beside its database. A server decides for itself (None)."""
    uri = store_uri(store)
    return str(Path(uri.removeprefix("sqlite:///")).parent / "artifacts") if uri.startswith("sqlite:///") else None


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("ab"):
            pass
    except OSError as error:
        raise UserError(f"cannot write the store {path}: {error.strerror}; give another with --store") from error


def check_file(path: Path) -> None:
    """Refuse a file that is not MLflow's with :class:`UserError`.

    Whoever may meet another process that makes the store calls it under the lock.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is no MLflow store: {error}; give another with --store") from error
    if tables and not {"runs", "experiments", "metrics"} <= tables:
        raise UserError(f"{path} is a SQLite file but no MLflow store (tables: {', '.join(sorted(tables)[:5])}); give another with --store")


def _reached(client: MlflowClient, uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.exceptions import MlflowException

    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise UserError(f"the store {uri} does not answer: {str(error).splitlines()[0][:200]}") from error
    return client
