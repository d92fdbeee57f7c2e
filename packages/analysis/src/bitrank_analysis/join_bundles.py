"""Join the tables of several evidence bundles: the parts of a study that several machines executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

Tables = Mapping[str, pa.Table]  # the tables of a bundle by name
Rank = tuple[bool, int, int]  # of a version of a run: finished, end in milliseconds, rows in all tables
PREDICTIONS = "predictions-"


def joined(parts: Sequence[Tables]) -> dict[str, pa.Table]:
    """The runs of all ``parts``, in any order, as tables of one bundle, in the experiment of the lowest id.

    Of a run that several parts have, the finished version is kept, or else the one that ended last.
    """
    experiments = min((part["experiments"] for part in parts), key=_experiment_id)
    own = _without_repeats(parts, _experiment_id(experiments))
    names = [name for name in own[0] if not name.startswith(PREDICTIONS) and name != "experiments"]
    found = {"experiments": experiments}
    for name in names:
        rows = pa.concat_tables([part[name] for part in own])
        found[name] = rows if name == "texts" else sorted_rows(rows)
    found["texts"] = found["texts"].sort_by("run_id")
    return {**found, **_predictions(own)}


def different_versions(parts: Sequence[Tables]) -> list[str]:
    """Names of the runs that several ``parts`` have with another status, end or number of rows."""
    versions = _versions(parts)
    different = [run_id for run_id, ranks in versions.items() if len(set(ranks.values())) > 1]
    named = {run["run_id"]: run["name"] for part in parts for run in part["runs"].to_pylist()}
    return sorted(named[run_id] or run_id for run_id in different)


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
    """The tables of each part without runs whose better version another part has, with ``experiment_id``."""
    kept = {run_id: max(ranks, key=lambda at: (ranks[at], -at)) for run_id, ranks in _versions(parts).items()}
    found = []
    for position, part in enumerate(parts):
        chosen = pa.array([run_id for run_id, at in kept.items() if at == position], pa.string())
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


def _versions(parts: Sequence[Tables]) -> dict[str, dict[int, Rank]]:
    """{run: {position of a part that has it: rank of its version}}."""
    found: dict[str, dict[int, Rank]] = {}
    for position, part in enumerate(parts):
        rows = _row_counts(part)
        for run in part["runs"].to_pylist():
            rank = (run["status"] == "FINISHED", run["end_ms"], rows[run["run_id"]])
            found.setdefault(run["run_id"], {})[position] = rank
    return found


def _row_counts(part: Tables) -> Counter[str]:
    """{run: rows that tell of it}; a copy of a store without its files has fewer."""
    counts: Counter[str] = Counter()
    for name, table in part.items():
        if name not in ("experiments", "unread"):
            for row in pc.value_counts(table["run_id"]).to_pylist():
                counts[row["values"]] += row["counts"]
    return counts


def _experiment_id(experiments: pa.Table) -> int:
    (found,) = experiments["experiment_id"].to_pylist()
    return int(found)


def _predictions(parts: Sequence[Tables]) -> dict[str, pa.Table]:
    """Predictions of all parts, run by run in the order of the runs' ids; rows keep their order."""
    of_run: dict[str, pa.Table] = {}
    for part in parts:
        for name in part:
            if name.startswith(PREDICTIONS):
                for run_id in pc.unique(part[name]["run_id"]).to_pylist():
                    of_run[run_id] = part[name].filter(pc.equal(part[name]["run_id"], run_id))
    return by_columns([of_run[run_id] for run_id in sorted(of_run)])
