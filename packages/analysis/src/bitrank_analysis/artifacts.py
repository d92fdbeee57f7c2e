"""DuckDB views over the files of runs: ``predictions``, ``ranks``, ``plans``, ``specs`` and ``unread``.

Only artifacts on this machine are read; those of a server (``mlflow-artifacts:/``, ``s3://``) from a folder
with a copy of them. A run with artifacts elsewhere and every damaged file is a row of ``unread``, so
unreadable data is never silently absent. A file that does not exist (the run failed before it was written)
has no row in any view.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import duckdb

from bitrank_analysis.errors import AnalysisError, masked_uri

PREDICTIONS, RANKS, PLAN, SPEC = "predictions.parquet", "ranks.json", "plan.json", "spec.json"
CONTINUATIONS = "continuations.json"
ELSEWHERE = (
    "give the folder that has them with --artifacts: the server's --artifacts-destination, mounted or copied"
)
EMPTY_PREDICTIONS = (
    "SELECT NULL::VARCHAR AS run_id, NULL::VARCHAR AS id, NULL::DOUBLE AS loss, NULL::BIGINT AS tokens "
    "WHERE false"
)

# Files are read as text and parsed one by one, so that a truncated file becomes a row of `unread` and does
# not make the whole view fail.
_VIEWS = """
CREATE VIEW ranks AS
  WITH parsed AS (
    SELECT run_id, from_json(content, '{"final": "MAP(VARCHAR, BIGINT)",
      "over_time": "MAP(BIGINT, MAP(VARCHAR, BIGINT))"}') AS j
    FROM raw.ranks_text WHERE json_valid(content)),
  steps AS (SELECT run_id, unnest(map_entries(j.over_time)) AS s FROM parsed),
  cells AS (SELECT run_id, s.key AS step, unnest(map_entries(s.value)) AS r FROM steps
            UNION ALL SELECT run_id, NULL, unnest(map_entries(j.final)) FROM parsed)
  SELECT run_id, r.key AS matrix, step, r.value AS rank, step IS NULL AS final FROM cells;
CREATE VIEW plans AS
  WITH parsed AS (
    SELECT run_id, from_json(content, '{"precision": "MAP(VARCHAR, VARCHAR)", "ranks": "MAP(VARCHAR, BIGINT)",
      "applied": "MAP(VARCHAR, STRUCT(format VARCHAR, backend VARCHAR))",
      "matrices":
        ["STRUCT(name VARCHAR, role VARCHAR, layer BIGINT, shape BIGINT[], tied_to VARCHAR)"]}') AS j
    FROM raw.plans_text WHERE json_valid(content)),
  formats AS (SELECT run_id, e.key AS matrix, e.value AS format
              FROM (SELECT run_id, unnest(map_entries(j.precision)) AS e FROM parsed)),
  given AS (SELECT run_id, e.key AS matrix, e.value AS rank
            FROM (SELECT run_id, unnest(map_entries(j.ranks)) AS e FROM parsed)),
  stored AS (SELECT run_id, e.key AS matrix, e.value.format || '@' || e.value.backend AS stored_as
             FROM (SELECT run_id, unnest(map_entries(j.applied)) AS e FROM parsed)),
  known AS (SELECT run_id, m.name AS matrix, m.role, m.layer, m.shape, m.tied_to
            FROM (SELECT run_id, unnest(j.matrices) AS m FROM parsed))
  SELECT run_id, matrix, format, rank, stored_as, role, layer, shape, tied_to
  FROM formats FULL JOIN given USING (run_id, matrix)
    LEFT JOIN stored USING (run_id, matrix) LEFT JOIN known USING (run_id, matrix);
CREATE VIEW specs AS SELECT run_id, content::JSON AS spec FROM raw.specs_text WHERE json_valid(content);
CREATE VIEW unread AS
  SELECT run_id, file, reason FROM raw.unread
  UNION ALL SELECT run_id, 'ranks.json', 'it is not whole JSON'
    FROM raw.ranks_text WHERE NOT json_valid(content)
  UNION ALL SELECT run_id, 'plan.json', 'it is not whole JSON'
    FROM raw.plans_text WHERE NOT json_valid(content)
  UNION ALL SELECT run_id, 'spec.json', 'it is not whole JSON'
    FROM raw.specs_text WHERE NOT json_valid(content);
"""


def create_artifact_views(database: duckdb.DuckDBPyConnection, roots: Sequence[Path]) -> None:
    """Add the views to a connection that has the view ``runs``.

    The files are listed now and read when a view is queried. ``roots`` are folders with the artifacts of runs
    as EXPERIMENT/RUN/artifacts. They make moved stores and those of servers readable: if the folder recorded
    for a run is not on this machine, the same experiment and run in the first of them that has it are used.
    """
    database.execute("CREATE TABLE raw.files (run_id VARCHAR, file VARCHAR, path VARCHAR)")
    # Filled in an evidence bundle, where no run has files.
    database.execute("CREATE TABLE raw.texts (run_id VARCHAR, file VARCHAR, content VARCHAR)")
    database.execute("CREATE TABLE raw.predictions_of (run_id VARCHAR, relation VARCHAR)")
    database.execute("CREATE TABLE raw.unread (run_id VARCHAR, file VARCHAR, reason VARCHAR)")
    files, unread = [], []
    for run_id, uri in database.sql("SELECT run_id, artifact_uri FROM runs").fetchall():
        folder = local_folder(uri, roots)
        if folder is None:
            unread.append((run_id, "all", f"its artifacts are not on this machine: {masked_uri(uri)}"))
        else:
            files += [
                (run_id, name, str(folder / name))
                for name in (PREDICTIONS, RANKS, PLAN, SPEC)
                if (folder / name).is_file()
            ]
    _insert(database, "files", files)
    _insert(database, "unread", unread)
    _text_view(database, "ranks_text", [path for _, name, path in files if name == RANKS])
    _text_view(database, "plans_text", [path for _, name, path in files if name == PLAN])
    _text_view(database, "specs_text", [path for _, name, path in files if name == SPEC])
    _predictions_view(database, [(run_id, path) for run_id, name, path in files if name == PREDICTIONS])
    create_views(database)


def create_views(database: duckdb.DuckDBPyConnection) -> None:
    """Create ``ranks plans specs unread`` over the texts of the files."""
    database.execute(_VIEWS)


def read_file(database: duckdb.DuckDBPyConnection, run_id: str, name: str) -> str | None:
    """The text of the file ``name`` of a run; None if it has none, or its artifacts are not here."""
    kept = database.execute(
        "SELECT content FROM raw.texts WHERE run_id = ? AND file = ?", [run_id, name]
    ).fetchall()
    if kept:
        return str(kept[0][0])
    files = database.execute("SELECT path FROM raw.files WHERE run_id = ? LIMIT 1", [run_id]).fetchall()
    path = Path(files[0][0]).parent / name if files else None
    if path is None or not path.is_file():
        return None
    return path.read_text(encoding="utf-8", errors="replace")


def local_folder(uri: str, roots: Sequence[Path]) -> Path | None:
    """The folder of an artifact URI on this machine: its own (a path or ``file://``), else one in ``roots``.

    None for another kind of URI (``mlflow-artifacts:/``, ``s3://``) whose folder no root has.
    """
    parts = urlsplit(uri)
    folder = Path(unquote(parts.path)) if parts.scheme else Path(uri)
    is_local = parts.scheme in {"", "file"}
    if is_local and folder.is_dir():
        return folder
    inside = folder.relative_to(folder.anchor).parts[-3:]
    copies = (root.joinpath(*inside) for root in roots)
    return next((copy for copy in copies if copy.is_dir()), folder if is_local else None)


def read_predictions(database: duckdb.DuckDBPyConnection, run_id: str) -> duckdb.DuckDBPyRelation:
    """The predictions of one run, without ``run_id``.

    Raises :class:`AnalysisError` with the reason if there are none or they cannot be read.
    """
    kept = database.execute("SELECT relation FROM raw.predictions_of WHERE run_id = ?", [run_id]).fetchall()
    if kept:
        return (
            database.table(f"raw.{kept[0][0]}").filter(f"run_id = '{run_id}'").project("* EXCLUDE (run_id)")
        )
    rows = database.execute(
        "SELECT path FROM raw.files WHERE run_id = ? AND file = ?", [run_id, PREDICTIONS]
    ).fetchall()
    reasons = database.execute(
        "SELECT reason, file = 'all' FROM raw.unread WHERE run_id = ? AND file IN ('all', ?)",
        [run_id, PREDICTIONS],
    ).fetchall()
    if reasons:
        reason, is_elsewhere = reasons[0]
        remedy = ELSEWHERE if is_elsewhere else "copy its artifacts here or run it again"
        raise AnalysisError(f"{PREDICTIONS} of run {run_id} cannot be read: {reason}; {remedy}")
    if not rows:
        raise AnalysisError(
            f"run {run_id} has no {PREDICTIONS}, so it cannot be compared example by example; "
            "run it again to make one"
        )
    return database.from_parquet(pattern_of(rows[0][0]))


def _insert(database: duckdb.DuckDBPyConnection, table: str, rows: list[tuple[str, str, str]]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    database.execute(
        f"INSERT INTO raw.{table} SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), unnest(?::VARCHAR[])",
        columns,
    )


def _text_view(database: duckdb.DuckDBPyConnection, name: str, paths: list[str]) -> None:
    query = "SELECT NULL::VARCHAR AS run_id, NULL::VARCHAR AS content WHERE false"
    if paths:
        files = f"read_text({_paths(paths)}) t JOIN raw.files f ON f.path = t.filename"
        query = f"SELECT run_id, content FROM {files}"
    database.execute(f"CREATE VIEW raw.{name} AS {query}")


def _predictions_view(database: duckdb.DuckDBPyConnection, files: list[tuple[str, str]]) -> None:
    """Create the view ``predictions``, with the columns of all files united by name.

    DuckDB reads the files' metadata here; files that are not complete Parquet become rows of ``unread``.
    """
    paths = [path for _, path in files]
    try:
        database.execute(_predictions_sql(paths))
    except duckdb.Error:
        broken = [
            (run_id, PREDICTIONS, "it is not a whole Parquet file")
            for run_id, path in files
            if not _is_parquet(database, path)
        ]
        if not broken:
            raise
        _insert(database, "unread", broken)
        bad = {run_id for run_id, *_ in broken}
        database.execute(_predictions_sql([path for run_id, path in files if run_id not in bad]))


def _predictions_sql(paths: list[str]) -> str:
    if not paths:
        return f"CREATE VIEW predictions AS {EMPTY_PREDICTIONS}"
    rows = f"read_parquet({_paths(paths)}, union_by_name=true, filename='artifact_path') p"
    return (
        "CREATE VIEW predictions AS SELECT f.run_id, p.* EXCLUDE (artifact_path) "
        f"FROM {rows} JOIN raw.files f ON f.path = p.artifact_path"
    )


def _is_parquet(database: duckdb.DuckDBPyConnection, path: str) -> bool:
    try:
        database.execute("SELECT count(*) FROM parquet_schema(?)", [pattern_of(path)]).fetchall()
    except duckdb.Error:
        return False
    return True


def sql_list(texts: list[str]) -> str:
    """``texts`` as a DuckDB list literal."""
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


def _paths(paths: list[str]) -> str:
    """A list literal of file paths; DuckDB reads each as a glob pattern, so wildcards are escaped."""
    return sql_list([pattern_of(path) for path in paths])


def pattern_of(path: str) -> str:
    """The glob pattern that matches only the file ``path``."""
    return re.sub(r"[*?\[]", r"[\g<0>]", path)
