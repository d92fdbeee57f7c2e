"""Write an evidence bundle: the results of one experiment without the machine that made them.

The bundle has what reports, papers and queries read. MLflow's own tags (user, source file), the addresses of
artifacts and the folders in front of local paths are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from bitrank_analysis.artifacts import (
    CONTINUATIONS,
    PLAN,
    RANKS,
    SPEC,
    read_file,
    read_predictions,
    sql_list,
)
from bitrank_analysis.bundle import MANIFEST, VERSION, digest_of, is_bundle, listed_files
from bitrank_analysis.errors import AnalysisError, masked, masked_uri
from bitrank_analysis.files import write_atomically
from bitrank_analysis.join_bundles import by_columns, different_versions, joined, sorted_rows
from bitrank_analysis.local_paths import without_addresses, without_paths
from bitrank_analysis.outputs import UNFINISHED, move_files, remove_files, temporary_folder
from bitrank_analysis.readable import without_predictions
from bitrank_analysis.store import open_store
from bitrank_analysis.study import Study, load_study

# Tables of the store → query over the runs of one experiment; {ids} is their list.
_QUERIES = {
    "experiments": "SELECT * FROM raw.experiments WHERE experiment_id IN "
    "(SELECT experiment_id FROM raw.runs WHERE run_id IN ({ids}))",
    "runs": "SELECT * REPLACE ('' AS artifact_uri) FROM raw.runs WHERE run_id IN ({ids})",
    "params": "SELECT * FROM raw.params WHERE run_id IN ({ids})",
    "tags": "SELECT * FROM raw.tags WHERE run_id IN ({ids}) AND key NOT LIKE 'mlflow.%'",
    "metrics": "SELECT * FROM raw.metrics WHERE run_id IN ({ids})",
    "unread": "SELECT * FROM raw.unread WHERE run_id IN ({ids})",
}
_FIELDS = ("model", "task", "data", "plan", "test_file")  # fields of a spec that may be local paths
_TEXT_FILES = (RANKS, PLAN, SPEC, CONTINUATIONS)


def write_bundle(
    stores: str | Sequence[str],
    out_folder: Path | str,
    experiment: str | None = None,
    on_notice: Callable[[str], None] = lambda _: None,
    artifacts: Path | None = None,
) -> Path:
    """Write the bundle of ``experiment`` (or of the only one) into ``out_folder``; returns the folder.

    Several ``stores`` or bundles are the parts of one experiment. The same results give the same bytes,
    however they are divided. Of a run in several parts the finished version is kept, or else the one that
    ended last; ``on_notice`` gets a sentence on runs whose versions differ. An earlier bundle in the folder
    is replaced when the new one is complete; it may be one of ``stores``. ``artifacts`` is that of
    :func:`~bitrank_analysis.open_store`. Raises :class:`AnalysisError` as
    :func:`~bitrank_analysis.load_study` does, if the parts are of different experiments, if no finished run
    has readable predictions, and if the folder has files of something else.
    """
    uris = [stores] if isinstance(stores, str) else stores
    studies = {uri: load_study(open_store(uri, artifacts), experiment) for uri in uris}
    names = {study.experiment for study in studies.values()}
    if len(names) > 1:
        each = ", ".join(f"{study.experiment} in {masked_uri(uri)}" for uri, study in studies.items())
        raise AnalysisError(f"expected parts of one experiment, got {each}; choose one with --experiment")
    (name,) = names
    _check_predictions(list(studies.values()))
    each_part = [_read(study) for study in studies.values()]
    if different := different_versions(each_part):
        on_notice(
            f"runs with different versions in these stores: {len(different)}, such as {different[0]}; the "
            "finished version is kept, or else the one that ended last"
        )
    tables = joined(each_part)
    folder = Path(out_folder)
    try:
        earlier = _earlier(folder)
        with temporary_folder(folder) as making:
            files = {
                f"{table}.parquet": _write(making / f"{table}.parquet", tables[table]) for table in tables
            }
            manifest = {"version": VERSION, "experiment": name, "digest": digest_of(files), "files": files}
            write_atomically(making / MANIFEST, json.dumps(manifest, indent=1) + "\n")
            move_files(making, folder, [*files, MANIFEST])
        remove_files(folder, earlier - {*files, MANIFEST})
    except OSError as error:
        raise AnalysisError(
            f"expected a folder to write the bundle to, got {folder}: {error.strerror}; choose another"
        ) from error
    return folder


def _check_predictions(parts: Sequence[Study]) -> None:
    """Raise :class:`AnalysisError` if no run to compare has predictions: a report could not be made again."""
    lacking = [without_predictions(part) for part in parts]
    count = sum(len(part.runs) for part in parts)
    if count and count == sum(map(len, lacking)):
        reason = next(why for part in lacking for why in part.values())
        raise AnalysisError(
            f"none of the {count} finished runs of {parts[0].experiment} has predictions to keep: {reason}"
        )


def _read(study: Study) -> dict[str, pa.Table]:
    """The tables of the experiment of ``study`` in its store or bundle."""
    database = study.database
    rows = database.execute(
        "SELECT run_id FROM runs WHERE experiment = ? ORDER BY 1", [study.experiment]
    ).fetchall()
    ids = [run_id for (run_id,) in rows]
    return {**_tables(database, ids), "texts": _texts(database, ids), **_predictions(database, ids)}


def _earlier(folder: Path) -> set[str]:
    """The files of the bundle in ``folder``, which may be absent.

    Raises :class:`AnalysisError` if the folder has other files than a bundle, or Parquet files besides it.
    """
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    found = {name for name in found if not name.startswith(UNFINISHED)}
    if found and not is_bundle(folder):
        raise AnalysisError(
            f"{folder} has files of something else than a bundle; give an empty or new folder"
        )
    earlier = listed_files(folder)
    if foreign := sorted(name for name in found - earlier if name.endswith(".parquet")):
        raise AnalysisError(
            f"expected only the Parquet files of the bundle in {folder}, got {foreign[0]}, which "
            f"{MANIFEST} does not name; move it away, or give an empty or new folder"
        )
    return earlier


def _tables(database: duckdb.DuckDBPyConnection, ids: list[str]) -> dict[str, pa.Table]:
    chosen = f"SELECT unnest({sql_list(ids)})"
    found = {}
    for table, query in _QUERIES.items():
        rows = database.sql(query.format(ids=chosen)).to_arrow_table()
        if "value" in rows.column_names and pa.types.is_string(rows.schema.field("value").type):
            pairs = zip(rows["key"].to_pylist(), rows["value"].to_pylist(), strict=True)
            rows = _with_column(rows, "value", [_public(key, value) for key, value in pairs])
        if "reason" in rows.column_names:
            rows = _with_column(rows, "reason", map(without_addresses, rows["reason"].to_pylist()))
        found[table] = sorted_rows(rows)
    return found


def _with_column(rows: pa.Table, name: str, values: Iterable[str]) -> pa.Table:
    at = rows.column_names.index(name)
    return rows.set_column(at, name, pa.array(list(values), pa.string()))


def _texts(database: duckdb.DuckDBPyConnection, ids: list[str]) -> pa.Table:
    found: dict[str, list[str]] = {"run_id": [], "file": [], "content": []}
    for run_id in ids:
        for name in _TEXT_FILES:
            content = read_file(database, run_id, name)
            if content is not None:
                shown = _spec_without_folders(content) if name == SPEC else content
                for column, value in zip(found, (run_id, name, shown), strict=True):
                    found[column].append(value)
    return pa.table({column: pa.array(values, pa.string()) for column, values in found.items()})


def _predictions(database: duckdb.DuckDBPyConnection, ids: list[str]) -> dict[str, pa.Table]:
    """Predictions by name of the table: runs with equal columns share one; rows keep their order."""
    found = []
    for run_id in ids:
        try:
            rows = read_predictions(database, run_id).to_arrow_table()
        except AnalysisError:  # none, or unreadable: then it is a row of ``unread``
            continue
        column = pa.array([run_id] * rows.num_rows, pa.string())
        found.append(rows.add_column(0, "run_id", column))
    return by_columns(found)


def _public(key: str, value: str) -> str:
    """The value of a param or tag: a name or path, or a sentence that may quote one."""
    return without_folder(value) if key in _FIELDS else without_paths(masked(value))


def without_folder(text: str) -> str:
    """A local path as ``…/name``; secrets of URIs masked, and paths inside another text cut likewise."""
    is_path = text.startswith(("/", "~/", "file:")) and len(text) > 1
    return f"…/{text.rstrip('/').rpartition('/')[2]}" if is_path else without_paths(masked(text))


def _spec_without_folders(content: str) -> str:
    """The text of ``spec.json`` with local paths cut; damaged JSON unchanged, which is reported as such."""
    try:
        spec = json.loads(content)
    except ValueError:
        return content
    for key in _FIELDS:
        if isinstance(spec.get(key), str):
            spec[key] = without_folder(spec[key])
    return json.dumps(spec, indent=1)


def _write(path: Path, rows: pa.Table) -> str:
    """Write ``rows`` as Parquet; returns the SHA-256 of the file."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()
