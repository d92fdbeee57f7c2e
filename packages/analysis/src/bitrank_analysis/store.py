"""An MLflow store (SQLite or Postgres) as DuckDB views, read-only and without DuckDB extensions.

ADBC streams the tables into typed DuckDB tables in memory. The views undo MLflow's encodings: NaN is stored
as 0 with a flag and infinities as the largest double, a resumed run may contain one step twice, and deleted
runs remain in the tables. Neither torch nor mlflow is imported.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from bitrank_analysis.artifacts import create_artifact_views, pattern_of, sql_list
from bitrank_analysis.bundle import create_bundle_views, is_bundle, load_bundle
from bitrank_analysis.errors import AnalysisError, masked, masked_uri
from bitrank_analysis.sqlite_file import readable_uri

# Table → (typed DuckDB columns, query at the source). Every nullable text is coalesced: the SQLite driver
# infers a column's type from its first batch, so a batch of NULLs would give an integer column, and a text
# in a later batch would be an error.
_TABLES = {
    "experiments": (
        "experiment_id BIGINT, name VARCHAR, lifecycle_stage VARCHAR",
        "SELECT experiment_id, name, COALESCE(lifecycle_stage, '') FROM experiments",
    ),
    "runs": (
        "run_id VARCHAR, name VARCHAR, status VARCHAR, start_ms BIGINT, end_ms BIGINT, "
        "lifecycle_stage VARCHAR, artifact_uri VARCHAR, experiment_id BIGINT",
        "SELECT run_uuid, COALESCE(name, ''), COALESCE(status, ''), COALESCE(start_time, 0), "
        "COALESCE(end_time, 0), COALESCE(lifecycle_stage, ''), COALESCE(artifact_uri, ''), experiment_id "
        "FROM runs",
    ),
    "params": (
        "run_id VARCHAR, key VARCHAR, value VARCHAR",
        "SELECT run_uuid, key, COALESCE(value, '') FROM params",
    ),
    "tags": (
        "run_id VARCHAR, key VARCHAR, value VARCHAR",
        "SELECT run_uuid, key, COALESCE(value, '') FROM tags",
    ),
    "metrics": (
        "run_id VARCHAR, key VARCHAR, step BIGINT, time_ms BIGINT, value DOUBLE, is_nan BOOLEAN",
        "SELECT run_uuid, key, step, timestamp, value, is_nan FROM metrics",
    ),
}
_LARGEST = "1.7976931348623157e308"  # the largest double, which MLflow stores for an infinity
_VIEWS = f"""
CREATE VIEW runs AS
  SELECT r.run_id, r.name AS run_name, e.name AS experiment, r.status,
         make_timestamp(r.start_ms * 1000) AS started, make_timestamp(NULLIF(r.end_ms, 0) * 1000) AS ended,
         (NULLIF(r.end_ms, 0) - r.start_ms) / 1e3 AS seconds, r.artifact_uri
  FROM raw.runs r JOIN raw.experiments e USING (experiment_id)
  WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active';
CREATE VIEW params AS SELECT p.* FROM raw.params p SEMI JOIN runs USING (run_id);
CREATE VIEW tags AS SELECT t.* FROM raw.tags t SEMI JOIN runs USING (run_id);
CREATE VIEW metrics AS
  SELECT run_id, key, step, make_timestamp(max(time_ms) * 1000) AS at,
         arg_max(CASE WHEN is_nan THEN 'nan'::DOUBLE
                      WHEN value >= {_LARGEST} THEN 'inf'::DOUBLE
                      WHEN value <= -{_LARGEST} THEN '-inf'::DOUBLE
                      ELSE value END, time_ms) AS value
  FROM raw.metrics SEMI JOIN runs USING (run_id) GROUP BY run_id, key, step;
CREATE VIEW final_metrics AS
  SELECT run_id, key, arg_max(value, step) AS value, max(step) AS step FROM metrics GROUP BY run_id, key;
"""


def open_store(uri: str, artifacts: Path | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with views over the MLflow store at ``uri``.

    ``uri`` is a folder that contains ``mlflow.db``, a ``sqlite:///`` or a ``postgresql://`` URI, or the
    folder of an evidence bundle (:mod:`bitrank_analysis.bundle`). ``artifacts`` is a folder with the runs'
    artifacts as EXPERIMENT/RUN/artifacts, such as the ``--artifacts-destination`` of a tracking server; it is
    used, before ``artifacts`` beside ``mlflow.db``, for runs whose recorded folder is not on this machine. A
    bundle does not need it.

    Views over the tables: ``runs params tags metrics final_metrics wide``; ``wide`` has one row per run, with
    params as ``p.<key>``, tags as ``t.<key>`` and final metrics as ``m.<key>``. Views over the runs' files:
    ``predictions`` (run_id and the columns of predictions.parquet), ``ranks`` (run_id, matrix, step, rank,
    final; the final ranks have no step), ``plans`` (run_id, matrix, format, rank, stored_as, role, layer,
    shape, tied_to), ``specs`` (run_id, spec: the run's spec as JSON) and ``unread`` (run_id, file,
    reason). The connection can open no other file and no network address, and its settings are locked. Raises
    :class:`AnalysisError` if ``uri`` is not a readable MLflow store.
    """
    database = duckdb.connect(
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    )
    database.execute("CREATE SCHEMA raw")
    location = _location(uri)
    if isinstance(location, Path) and not location.exists() and is_bundle(location.parent):
        load_bundle(database, location.parent)
        database.execute(_VIEWS)
        _create_wide(database)
        create_bundle_views(database)
        _lock(database, None)
        return database
    _read_tables(database, uri, location)
    database.execute(_VIEWS)
    _create_wide(database)
    store_folder = location.parent if isinstance(location, Path) else None
    roots = [*_given_root(artifacts), *([store_folder / "artifacts"] if store_folder else [])]
    create_artifact_views(database, roots)
    _lock(database, store_folder)
    return database


def _given_root(artifacts: Path | None) -> list[Path]:
    """``artifacts`` as a list, empty for None. Raises :class:`AnalysisError` if there is no such folder."""
    if artifacts is None:
        return []
    if not artifacts.is_dir():
        raise AnalysisError(
            f"there is no folder {artifacts}; expected one with artifacts of runs, EXPERIMENT/RUN/artifacts"
        )
    return [artifacts.resolve()]


def _read_tables(database: duckdb.DuckDBPyConnection, uri: str, location: Path | URL) -> None:
    try:
        with ExitStack() as stack:
            source, options = _connect(location, stack)
            cursor = stack.enter_context(stack.enter_context(source).cursor())
            if options:
                cursor.adbc_statement.set_options(**options)
            for table, (columns, query) in _TABLES.items():
                database.execute(f"CREATE TABLE raw.{table} ({columns})")
                cursor.execute(query)
                reader = cursor.fetch_record_batch()  # noqa: F841 - the SQL below names this variable
                database.execute(f"INSERT INTO raw.{table} SELECT * FROM reader")
    except AnalysisError:
        raise
    except Exception as error:  # noqa: BLE001 - drivers raise classes of their own
        reason = masked(str(error).splitlines()[0])[:200]
        raise AnalysisError(
            f"{masked_uri(uri)} is no MLflow store that can be read: {reason}; choose another"
        ) from None


def _lock(database: duckdb.DuckDBPyConnection, store_folder: Path | None) -> None:
    """Restrict the connection permanently to the runs' artifacts: no other file, network, extension, setting.

    The store's own artifact folder is allowed as a whole; artifacts of runs elsewhere are allowed file by
    file.
    """
    folder = f"{store_folder}/artifacts/" if store_folder else None
    paths = [path for (path,) in database.sql("SELECT path FROM raw.files").fetchall()]
    elsewhere = [path for path in paths if folder is None or not path.startswith(folder)]
    # The views open a path with wildcard characters through its escaped pattern, and DuckDB checks both the
    # path and the pattern.
    database.execute(f"SET allowed_directories = {sql_list(_with_patterns([folder] if folder else []))}")
    database.execute(f"SET allowed_paths = {sql_list(_with_patterns(elsewhere))}")
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")


def _with_patterns(paths: list[str]) -> list[str]:
    return list(dict.fromkeys([*paths, *map(pattern_of, paths)]))


def _connect(location: Path | URL, stack: ExitStack) -> tuple[Any, dict[str, str]]:
    if isinstance(location, Path):
        import adbc_driver_sqlite.dbapi as sqlite

        if not location.is_file():
            remedy = "run `make matrix` first, or choose another store"
            raise AnalysisError(f"there is no store at {location}; {remedy}")
        uri = stack.enter_context(readable_uri(location))
        return sqlite.connect(uri), {"adbc.sqlite.query.batch_rows": "65536"}
    try:
        import adbc_driver_postgresql.dbapi as postgresql
    except ImportError as error:
        raise AnalysisError("reading Postgres needs: pip install 'bitrank-analysis[postgres]'") from error
    address = location.set(drivername="postgresql")
    try:
        return postgresql.connect(address.render_as_string(hide_password=False)), {}
    except postgresql.Error as error:
        reason = masked(str(error).splitlines()[0])[:200]
        raise AnalysisError(
            f"cannot connect to the store {masked_uri(address.render_as_string())}: {reason}"
        ) from None


def _location(uri: str) -> Path | URL:
    """The store's SQLite file, or the URL of its Postgres server. A folder name is never parsed as a URI."""
    if "://" not in uri:
        return Path(uri).resolve() / "mlflow.db"
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # SQLAlchemy reads the port with int()
        raise AnalysisError(f"cannot parse the store URI {masked_uri(uri)!r}") from None
    if url.get_backend_name() not in {"sqlite", "postgresql"}:
        raise AnalysisError(
            f"expected a folder, a sqlite:/// or a postgresql:// URI, got {url.get_backend_name()}://"
        )
    return Path(url.database or "").resolve() if url.get_backend_name() == "sqlite" else url


def _create_wide(database: duckdb.DuckDBPyConnection) -> None:
    joins = "\n".join(
        f"LEFT JOIN {_pivot(database, view, prefix)} USING (run_id)"
        for view, prefix in (("params", "p."), ("tags", "t."), ("final_metrics", "m."))
    )
    database.execute(f"CREATE VIEW wide AS SELECT * FROM runs {joins}")


def _pivot(database: duckdb.DuckDBPyConnection, view: str, prefix: str) -> str:
    """A subquery with one row per run and one column per key of ``view``."""
    keys = [
        key
        for (key,) in database.sql(
            f"SELECT DISTINCT key FROM {view} WHERE key NOT LIKE 'mlflow.%' ORDER BY 1"
        ).fetchall()
    ]
    columns = [
        f"any_value(value) FILTER (key = {_literal(key)}) AS {_identifier(prefix + key)}" for key in keys
    ]
    return f"(SELECT {', '.join(['run_id', *columns])} FROM {view} GROUP BY run_id)"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
