"""Join the tables of several evidence bundles: the parts of a study that several machines executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

Tables = Mapping[str, pa.Table]  # the tables of a bundle by name
PREDICTIONS = "predictions-"


def joined(parts: Sequence[Tables]) -> dict[str, pa.Table]:
    """The runs of all ``parts`` as tables of one bundle, in the experiment of the first part.

    A run that several parts have is that of the first of them.
    """
    (experiment_id,) = parts[0]["experiments"]["experiment_id"].to_pylist()
    own = _without_repeats(parts, experiment_id)
    names = [name for name in own[0] if not name.startswith(PREDICTIONS) and name != "experiments"]
    found = {"experiments": parts[0]["experiments"]}
    for name in names:
        rows = pa.concat_tables([part[name] for part in own])
        found[name] = rows if name == "texts" else sorted_rows(rows)
    found["texts"] = found["texts"].sort_by("run_id")
    return {**found, **_predictions(own)}


def sorted_rows(rows: pa.Table) -> pa.Table:
    """``rows`` in ascending order of their columns, the first column first."""
    return rows.sort_by([(column, "ascending") for column in rows.column_names])


def by_columns(tables: Sequence[pa.Table]) -> dict[str, pa.Table]:
    """Predictions by name of the table: those with equal columns share one."""
    groups: dict[str, list[pa.Table]] = {}
    for table in tables:
        groups.setdefault(str(table.schema), []).append(table)
    ordered = [groups[schema] for schema in sorted(groups)]
    return {f"{PREDICTIONS}{number:02d}": pa.concat_tables(group) for number, group in enumerate(ordered)}


def _without_repeats(parts: Sequence[Tables], experiment_id: int) -> list[dict[str, pa.Table]]:
    """The tables of each part without runs of an earlier part, all with ``experiment_id``."""
    seen: set[str] = set()
    found = []
    for part in parts:
        new = sorted(set(part["runs"]["run_id"].to_pylist()) - seen)
        seen.update(new)
        chosen = pa.array(new, pa.string())
        tables = {
            name: table.filter(pc.is_in(table["run_id"], value_set=chosen))
            for name, table in part.items()
            if name != "experiments"
        }
        runs = tables["runs"]
        ids = pa.array([experiment_id] * runs.num_rows, pa.int64())
        tables["runs"] = runs.set_column(runs.column_names.index("experiment_id"), "experiment_id", ids)
        found.append(tables)
    return found


def _predictions(parts: Sequence[Tables]) -> dict[str, pa.Table]:
    """Predictions of all parts, run by run in the order of the runs' ids; rows keep their order."""
    of_run: dict[str, pa.Table] = {}
    for part in parts:
        for name in part:
            if name.startswith(PREDICTIONS):
                for run_id in pc.unique(part[name]["run_id"]).to_pylist():
                    of_run[run_id] = part[name].filter(pc.equal(part[name]["run_id"], run_id))
    return by_columns([of_run[run_id] for run_id in sorted(of_run)])
