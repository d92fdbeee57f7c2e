"""One experiment of the store as a study: the runs to compare, their results, and the missing cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pandas as pd

from bitrank_analysis.artifacts import read_predictions
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.metrics import METRICS
from bitrank_analysis.training_settings import unusual_settings

# Column of `Study.runs` → final metric.
_METRIC_COLUMNS = {
    "loss": "eval/loss",
    "model_mib": "model/mib",
    "adapter_mib": "lora/mib",
    "adapter_params": "lora/params",
    "trainable_percent": "lora/percent",
    "rank": "lora/rank",
    "peak_mib": "mem/peak_mib",
    "import_mib": "mem/import_mib",
    "train_tok_s": "speed/train_tok_s",
    "seconds": "time/total_s",
    "bits": "model/bits",
    "plan_s": "time/plan_s",
}
_TEXT_COLUMNS = (
    "run_id",
    "run_name",
    "config",
    "task",
    "model",
    "hardware",
    "device",
    "code",
    "shared_code",
    "family",
    "status",
)
_TAGS = (
    "config",
    "task",
    "seed",
    "model",
    "hardware",
    "device",
    "code",
    "shared_code",
    "kind",
    "metric",
    "family",
    "spec_id",
    "failure",
    "finding",
)
_CELL = ["config", "task", "seed"]
ABSENT = "ABSENT"  # status of a cell of the grid that was never run


@dataclass(frozen=True)
class Study:
    """The runs of one experiment, selected for comparison.

    ``runs``: one row per cell (config, task, seed) that has a finished run with a quality. Of several, it is
    the newest with the task's most frequent settings, else the newest. ``missing``: one row per cell of the
    full grid (every observed config × task × seed) without such a run, with MLflow's ``status`` (or
    :data:`ABSENT`) and a ``reason`` that begins with failed, killed, diverged, running, finished or absent.
    ``notes``: sentences on excluded runs and results of older code. ``database`` is the open store.
    """

    experiment: str
    runs: pd.DataFrame
    missing: pd.DataFrame
    database: duckdb.DuckDBPyConnection
    notes: tuple[str, ...] = ()

    def predictions(self, run_id: str) -> pd.DataFrame:
        """Rows of the run's ``predictions.parquet``. Raises :class:`AnalysisError` if it cannot be read."""
        return read_predictions(self.database, run_id).df()


def load_study(
    database: duckdb.DuckDBPyConnection,
    experiment: str | None = None,
    rates: Mapping[tuple[str, str], float] | None = None,
) -> Study:
    """Load ``experiment``, or the only experiment with runs of bitrank, as a study.

    ``rates``: learning rate by (config, task), chosen for each; runs of these with another rate are left out.

    Columns of ``runs``: run_id, run_name, config, task, seed, model, kind, metric, higher_is_better, quality,
    zero (quality before training, NaN where not measured), loss (nats), model_mib, adapter_mib (at the end of
    training), adapter_params, trainable_percent, rank, peak_mib, import_mib, train_tok_s, seconds, bits,
    plan_s (seconds of planning; NaN for an arm that is not planned), family ("planned" if a planner chose the
    arm's formats and ranks), hardware, device ("" where not recorded), code, stale (made by other code than
    the newest run of the config), settings (those that differ from the usual ones, "" for none).
    Raises :class:`AnalysisError` if the experiment does not exist, has no run with the tags config, task and
    seed, or is ambiguous (None, and the store has several).
    """
    all_tagged = _tagged(database)
    experiment = _experiment(database, all_tagged, experiment)
    in_experiment = all_tagged[all_tagged["experiment"] == experiment]
    tagged = in_experiment.sort_values("started", kind="stable").reset_index(drop=True)
    finals = _finals(database, experiment)
    rows = pd.DataFrame([_row(run, finals.get(run["run_id"], {})) for run in tagged.to_dict("records")])
    rows["stale"] = _stale(rows)
    other_data = _read_other_data(database, rows)
    rows.loc[other_data, "problem"] = "finished on other data than the newest run of its task"
    other_rate = (rows["problem"] == "") & _have_other_rate(database, rows, rates or {})
    rows.loc[other_rate, "problem"] = "finished with another learning rate than the study chose"
    good = rows[rows["problem"] == ""]
    chosen = ("learning_rate",) if rates else ()
    good = good.assign(settings=good["run_id"].map(unusual_settings(database, good, chosen)).astype(object))
    usual_last = good.sort_values("settings", key=lambda column: column == "", kind="stable")
    selected = usual_last.drop_duplicates(_CELL, keep="last")
    runs = selected.sort_values(["task", "config", "seed"]).reset_index(drop=True)
    count_query = "SELECT count(*) FROM runs WHERE experiment = ?"
    all_runs = database.execute(count_query, [experiment]).fetchall()[0][0]
    notes = _notes(all_runs - len(rows), len(good) - len(runs), int(other_data.sum()), runs)
    return Study(
        experiment,
        runs.drop(columns=["problem", "status", "shared_code"]),
        _missing(rows, runs),
        database,
        notes,
    )


def _have_other_rate(
    database: duckdb.DuckDBPyConnection, rows: pd.DataFrame, rates: Mapping[tuple[str, str], float]
) -> pd.Series:
    """Mark runs whose learning rate is not that of their config and task in ``rates``."""
    query = "SELECT run_id, value FROM params WHERE key = 'learning_rate'"
    found = dict(database.execute(query).fetchall()) if rates else {}

    def differs(run_id: str, cell: tuple[str, str]) -> bool:
        known = run_id in found and cell in rates
        return known and not math.isclose(float(found[run_id]), rates[cell], rel_tol=1e-6)

    cells = zip(rows["run_id"], zip(rows["config"], rows["task"], strict=True), strict=True)
    return pd.Series([differs(run_id, cell) for run_id, cell in cells], index=rows.index, dtype=bool)


def _stale(rows: pd.DataFrame) -> pd.Series:
    """Mark runs made by other code than the newest run of their config, or by other shared code.

    ``code`` hashes all code that affects the numbers of one arm, its rules included; ``shared_code`` is the
    part that all arms use.
    """
    other_arm_code = rows["code"] != rows.groupby("config")["code"].transform("last")
    known = rows["shared_code"] != ""
    if not known.any():
        return other_arm_code
    newest = rows.loc[known, "shared_code"].iloc[-1]
    return other_arm_code | (known & (rows["shared_code"] != newest))


def _read_other_data(database: duckdb.DuckDBPyConnection, rows: pd.DataFrame) -> pd.Series:
    """Mark comparable runs whose data had other content than that of the newest comparable run of the task.

    Examples are paired by id, and a row number of an edited file identifies another example than before.
    Runs without a recorded digest (older versions) count as having read the same data.
    """
    found = database.sql("SELECT run_id, value FROM params WHERE key = 'data_digest'").fetchall()
    digests = rows["run_id"].map(dict(found)).where(rows["problem"] == "")
    newest = digests.groupby(rows["task"]).transform("last")  # skips missing digests
    return digests.notna() & (digests != newest)


def _tagged(database: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """Runs made by bitrank: those with the tags config, task and an integer seed."""
    pivot = ", ".join(f"any_value(t.value) FILTER (t.key = '{tag}') AS {tag}" for tag in _TAGS)
    made = database.sql(
        f"SELECT run_id, run_name, experiment, status, started, {pivot} FROM runs JOIN tags t USING (run_id) "
        "GROUP BY ALL HAVING config <> '' AND task <> '' AND TRY_CAST(seed AS INTEGER) IS NOT NULL"
    ).df()
    return made.assign(seed=made["seed"].astype(int))


def _experiment(database: duckdb.DuckDBPyConnection, tagged: pd.DataFrame, requested: str | None) -> str:
    found = sorted(set(tagged["experiment"]))
    if requested in found:
        return str(requested)
    if not found:
        runs = database.sql("SELECT count(*) FROM runs").fetchall()[0][0]
        raise AnalysisError(
            "expected runs with the tags config, task and seed, as bitrank makes them; "
            f"the store has {runs} runs and none carries all three, so it is empty or another tool's: "
            "run `make matrix`, or choose another store"
        )
    if requested is not None:
        raise AnalysisError(
            f"there is no experiment {requested!r} with runs of bitrank; expected one of {', '.join(found)}"
        )
    if len(found) > 1:
        raise AnalysisError(f"the store contains several experiments; choose one of {', '.join(found)}")
    return str(found[0])


def _finals(database: duckdb.DuckDBPyConnection, experiment: str) -> dict[str, dict[str, float]]:
    """run_id → metric key → final value."""
    found: dict[str, dict[str, float]] = {}
    sql = (
        "SELECT run_id, key, value FROM final_metrics "
        "SEMI JOIN (SELECT run_id FROM runs WHERE experiment = ?) USING (run_id)"
    )
    for run_id, key, value in database.execute(sql, [experiment]).fetchall():
        found.setdefault(run_id, {})[key] = value
    return found


def _row(run: dict[str, Any], finals: dict[str, float]) -> dict[str, Any]:
    """One run as a row; ``problem`` is the reason why it cannot be compared ("" if it can)."""
    recorded = _text(run["metric"])
    found = [metric for key, metric in METRICS.items() if f"eval/{key}" in finals]
    # Runs of older versions recorded no metric: it is the first one of their kind that they measured.
    first = {metric.kind: metric for metric in reversed(found)}
    found = [
        metric for metric in found if recorded == metric.key or (not recorded and metric in first.values())
    ]
    known = [f"eval/{metric.key}" for metric in found]
    quality = finals[known[0]] if known else float("nan")
    row: dict[str, Any] = {key: _text(run[key]) for key in _TEXT_COLUMNS}
    row |= {
        "seed": run["seed"],
        "kind": _text(run["kind"]) or (found[0].kind if found else ""),
        "metric": found[0].key if found else recorded,
        "higher_is_better": found[0].higher_is_better if found else True,
        "quality": quality,
    }
    row["zero"] = finals.get(f"zero/{row['metric']}", float("nan"))
    row |= {column: finals.get(key, float("nan")) for column, key in _METRIC_COLUMNS.items()}
    measured = sorted(key for key in finals if key.startswith("eval/"))
    return row | {"problem": _problem(run, known, quality, measured)}


def _problem(run: dict[str, Any], known: list[str], quality: float, measured: list[str]) -> str:
    failure, finding = _text(run["failure"]), _text(run["finding"])
    if run["status"] != "FINISHED" and finding:
        return f"diverged: {finding}"
    if run["status"] != "FINISHED":
        word = {"FAILED": "failed", "KILLED": "killed", "RUNNING": "running"}.get(
            run["status"], run["status"].lower()
        )
        return f"{word}: {failure}" if failure else word
    if not measured:
        return "finished without a test"
    if not known:
        return (
            f"finished with a metric that is not known: expected one of {_keys()}, got {', '.join(measured)}"
        )
    if len(known) > 1:
        return f"finished with both {' and '.join(known)}, so its quality is ambiguous"
    if not abs(quality) < float("inf"):
        return f"finished, but its {known[0]} is {quality}, not a number to compare"
    return ""


def _keys() -> str:
    return ", ".join(f"eval/{key}" for key in METRICS)


def _missing(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Cells of the full grid without a run to compare; the reason is that of the newest attempt."""
    done = set(runs[_CELL].itertuples(index=False, name=None))
    newest = {(row.config, row.task, row.seed): (row.status, row.problem) for row in rows.itertuples()}
    grid = [
        (config, task, seed)
        for task in sorted(set(rows["task"]))
        for config in sorted(set(rows["config"]))
        for seed in sorted(set(rows["seed"]))
    ]
    absent = (ABSENT, "absent: it was not run")
    return pd.DataFrame(
        [(*cell, *newest.get(cell, absent)) for cell in grid if cell not in done],
        columns=[*_CELL, "status", "reason"],
    )


def _notes(untagged: int, duplicates: int, other_data: int, runs: pd.DataFrame) -> tuple[str, ...]:
    """One sentence for each reason why runs were excluded or need a remark."""
    stale = list(runs.loc[runs["stale"], "run_name"])
    unusual = [f"{run.run_name} ({run.settings})" for run in runs.itertuples() if run.settings]
    counts = {
        f"Runs left out because they lack the tags config, task and seed: {untagged}.": untagged,
        f"Runs left out because their task has a newer run on other data: {other_data}.": other_data,
        "Runs left out for another of the same config, task and seed that is newer or has the usual "
        f"settings: {duplicates}.": duplicates,
        f"Trained with other settings than most runs of their task: {'; '.join(unusual)}.": len(unusual),
        f"Made by other code than the newest runs: {', '.join(stale)}.": len(stale),
    }
    return tuple(sentence for sentence, count in counts.items() if count)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
