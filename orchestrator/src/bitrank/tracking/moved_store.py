"""Follow a SQLite store that was moved or copied: MLflow keeps the absolute places of artifacts in it.

Without this, new runs of the store would write into the folder that it once was in, which may be another
store by now.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit


def follow_store(database: Path, artifact_uri: str) -> None:
    """Change the places of artifacts in ``database`` to ``artifact_uri``, the folder beside it.

    Hold the store's lock. Only places of bitrank's own form, ``artifacts/EXPERIMENT`` on this machine, are
    changed. A finished run keeps its place if its files were left there.
    """
    with closing(sqlite3.connect(database)) as store, store:
        known = store.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
        for experiment_id, name, location in known:
            place, own = _folder(location), f"{artifact_uri}/{name}"
            if place is not None and place.parts[-2:] == ("artifacts", name) and place != _folder(own):
                _follow_runs(store, experiment_id, location, own)
                changed = (own, experiment_id)
                store.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", changed)


def _follow_runs(store: sqlite3.Connection, experiment_id: int, location: str, own: str) -> None:
    runs = store.execute(
        "SELECT run_uuid, status, artifact_uri FROM runs WHERE experiment_id = ?", (experiment_id,)
    ).fetchall()
    for run_id, status, uri in runs:
        if not (uri or "").startswith(f"{location}/"):
            continue
        moved = own + uri.removeprefix(location)
        left_behind = status == "FINISHED" and _has_files(uri) and not _has_files(moved)
        if not left_behind:
            store.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (moved, run_id))


def _has_files(uri: str) -> bool:
    folder = _folder(uri)
    return folder is not None and folder.is_dir()


def _folder(uri: str | None) -> Path | None:
    """The folder of a path or of a ``file://`` URI; None for other URIs."""
    parts = urlsplit(uri or "")
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if uri and not parts.scheme else None
