"""Evidence bundles: the results of one experiment as Parquet files, read like a store.

A bundle is a folder with one Parquet file for each table of the store (``experiments runs params tags
metrics``), ``texts.parquet`` (ranks, plans, specs and continuations of the runs), ``unread.parquet``, one
``predictions-N.parquet`` for each set of columns that runs' predictions have, and ``evidence.json``: format
version, experiment, the SHA-256 of every file, and the digest of the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from bitrank_analysis.artifacts import EMPTY_PREDICTIONS, PLAN, RANKS, SPEC, create_views, pattern_of
from bitrank_analysis.errors import AnalysisError

MANIFEST = "evidence.json"
VERSION = 1
TABLES = ("experiments", "runs", "params", "tags", "metrics", "texts", "unread")
TEXT_VIEWS = {"ranks_text": RANKS, "plans_text": PLAN, "specs_text": SPEC}


def is_bundle(folder: Path) -> bool:
    """Whether ``folder`` is an evidence bundle."""
    return (folder / MANIFEST).is_file()


def listed_files(folder: Path) -> set[str]:
    """The Parquet files that the bundle in ``folder`` names; none without a readable manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {name for name in files if Path(name).name == name and name.endswith(".parquet")}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of a bundle whose files have these SHA-256 digests by name."""
    text = json.dumps(dict(sorted(files.items())), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load_bundle(database: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Read the bundle in ``folder`` into tables of the schema ``raw``.

    Raises :class:`AnalysisError` if a file is missing, changed, or of another format version.
    """
    files = _checked(folder)
    for table in TABLES:
        _create(database, table, folder / f"{table}.parquet")
    database.execute("CREATE TABLE raw.predictions_of (run_id VARCHAR, relation VARCHAR)")
    for name in sorted(name for name in files if name.startswith("predictions-")):
        relation = name.removesuffix(".parquet").replace("-", "_")
        _create(database, relation, folder / name)
        database.execute(
            f"INSERT INTO raw.predictions_of SELECT DISTINCT run_id, '{relation}' FROM raw.{relation}"
        )
    # No file of a run exists: its texts and predictions are tables.
    database.execute("CREATE TABLE raw.files (run_id VARCHAR, file VARCHAR, path VARCHAR)")


def create_bundle_views(database: duckdb.DuckDBPyConnection) -> None:
    """Create the views over runs' files from the tables of :func:`load_bundle`."""
    for view, file in TEXT_VIEWS.items():
        database.execute(
            f"CREATE VIEW raw.{view} AS SELECT run_id, content FROM raw.texts WHERE file = '{file}'"
        )
    rows = database.sql("SELECT DISTINCT relation FROM raw.predictions_of ORDER BY 1").fetchall()
    parts = [f"SELECT * FROM raw.{relation}" for (relation,) in rows] or [EMPTY_PREDICTIONS]
    database.execute(f"CREATE VIEW predictions AS {' UNION ALL BY NAME '.join(parts)}")
    create_views(database)


def _create(database: duckdb.DuckDBPyConnection, table: str, path: Path) -> None:
    try:
        database.execute(
            f"CREATE TABLE raw.{table} AS SELECT * FROM read_parquet(?)", [pattern_of(str(path))]
        )
    except duckdb.Error as error:
        raise AnalysisError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; copy the bundle again"
        ) from None


def _checked(folder: Path) -> dict[str, str]:
    """The digests of the files by name, after every file was compared with its digest."""
    manifest = _manifest(folder)
    files: dict[str, str] = manifest["files"]
    if digest_of(files) != manifest.get("digest"):
        raise AnalysisError(
            f"{folder / MANIFEST} was changed after the bundle was made; copy the bundle again"
        )
    for name, expected in files.items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != expected:
            raise AnalysisError(
                f"{path} is not the file that the bundle was made with: expected SHA-256 {expected[:12]}…, "
                f"got {found[:12]}; copy the bundle again"
            )
    missing = [f"{table}.parquet" for table in TABLES if f"{table}.parquet" not in files]
    if missing:
        raise AnalysisError(
            f"the bundle in {folder} has no {missing[0]}; make it again with `bitrank evidence`"
        )
    return files


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, files = manifest["version"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnalysisError(f"{path} is no manifest of a bundle: {type(error).__name__}: {error}") from None
    if version != VERSION:
        raise AnalysisError(
            f"the bundle in {folder} has format version {version}; this program reads version {VERSION}: use "
            "the program that made it, or make it again with `bitrank evidence`"
        )
    unsafe = [name for name in files if Path(name).name != name]
    if unsafe:
        raise AnalysisError(
            f"{path} names a file outside of the bundle: {unsafe[0]!r}; do not use this bundle"
        )
    return dict(manifest)
