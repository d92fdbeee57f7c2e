"""One experiment of the store as a study: which runs count, what each measured, and what is missing from the
grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import pandas as pd

from bitrank_analysis.artifacts import read_predictions
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.training_settings import unusual_settings

# Final metric → (kind of task, short name, whether more of it is better). A new kind of task is one line
# here.
METRICS: dict[str, tuple[str, str, bool]] = {
    "eval/acc": ("classification", "acc", True),
    "eval/ppl": ("language-modelling", "ppl", False),
}
# Column of `Study.runs` → final metric.
_FIGURES = {
    "loss": "eval/loss", "model_mib": "model/mib", "adapter_mib": "lora/mib", "adapter_params": "lora/params",
    "trainable_percent": "lora/percent",
    "rank": "lora/rank", "peak_mib": "mem/peak_mib", "import_mib": "mem/import_mib", "train_tok_s": "speed/train_tok_s",
    "seconds": "time/total_s", "bits": "model/bits",
}  # fmt: skip
_TEXTS = ("run_id", "run_name", "config", "task", "model", "hardware", "code", "shared_code", "status")
_TAGS = (
    "config",
    "task",
    "seed",
    "model",
    "hardware",
    "code",
    "shared_code",
    "spec_id",
    "failure",
    "finding",
)
_CELL = ["config", "task", "seed"]


@dataclass(frozen=True)
class Study:
    """An experiment's runs, ready to compare.

    ``runs``: one row per cell (config, task, seed) that has a finished run with a quality. Where there are
    several, the newest of those with the settings that most runs of the task share, else the newest.
    ``missing``: one row per cell of the full grid that has none (every config × task × seed seen), with
    MLflow's ``status`` (or ``ABSENT``) and a ``reason`` that begins with failed, killed, diverged, running,
    finished or absent. ``notes``: sentences on runs that were left out and results of older code.
    ``database`` is the open store.
    """

    experiment: str
    runs: pd.DataFrame
    missing: pd.DataFrame
    database: duckdb.DuckDBPyConnection
    notes: tuple[str, ...] = ()

    def predictions(self, run_id: str) -> pd.DataFrame:
        """Rows of the run's ``predictions.parquet``. Raises :class:`AnalysisError` when it has none or they
        cannot be read.
        """
        return read_predictions(self.database, run_id).df()


def load_study(database: duckdb.DuckDBPyConnection, experiment: str | None = None) -> Study:
    """The study in ``experiment``, or in the only experiment that holds runs of bitrank.

    Columns of ``runs``: run_id, run_name, config, task, seed, model, kind, metric, higher_is_better, quality,
    zero (quality before training, NaN where not measured), loss (nats), model_mib, adapter_mib (at the end of
    training), adapter_params, trainable_percent, rank, peak_mib, import_mib, train_tok_s, seconds, bits,
    hardware, code, stale (made by other code than the newest run of the config), settings (what was trained
    otherwise than in most runs of the task, "" for nothing). Raises :class:`AnalysisError` when there is no
    such experiment, when it holds no run with the tags config, task and seed, or when several could be meant.
    """
    every = _tagged(database)
    experiment = _experiment(database, every, experiment)
    tagged = (
        every[every["experiment"] == experiment].sort_values("started", kind="stable").reset_index(drop=True)
    )
    finals = _finals(database, experiment)
    rows = pd.DataFrame([_row(run, finals.get(run["run_id"], {})) for run in tagged.to_dict("records")])
    rows["stale"] = _stale(rows)
    other_data = _read_other_data(database, rows)
    rows.loc[other_data, "problem"] = "finished on other data than the newest run of its task"
    good = rows[rows["problem"] == ""]
    good = good.assign(settings=good["run_id"].map(unusual_settings(database, good)).astype(object))
    usual_last = good.sort_values("settings", key=lambda column: column == "", kind="stable")
    runs = (
        usual_last.drop_duplicates(_CELL, keep="last")
        .sort_values(["task", "config", "seed"])
        .reset_index(drop=True)
    )
    every_run = database.execute("SELECT count(*) FROM runs WHERE experiment = ?", [experiment]).fetchall()[
        0
    ][0]
    notes = _notes(every_run - len(rows), len(good) - len(runs), int(other_data.sum()), runs)
    return Study(
        experiment,
        runs.drop(columns=["problem", "status", "shared_code"]),
        _missing(rows, runs),
        database,
        notes,
    )


def _stale(rows: pd.DataFrame) -> pd.Series:
    """Runs made by other code than the newest of their config, or by other shared code than the newest run of
    all.

    ``code`` covers what decides the numbers of one arm, its rules included; ``shared_code`` is the part that
    all arms have.
    """
    other_arm = rows["code"] != rows.groupby("config")["code"].transform("last")
    sentences = rows.loc[rows["shared_code"] != "", "shared_code"]
    return (
        other_arm
        if sentences.empty
        else other_arm | ((rows["shared_code"] != "") & (rows["shared_code"] != sentences.iloc[-1]))
    )


def _read_other_data(database: duckdb.DuckDBPyConnection, rows: pd.DataFrame) -> pd.Series:
    """Runs that could be compared, but whose data had other content than that of the newest such run of their
    task.

    Examples are paired by their ids, and a row number of an edited file names another example than before.
    Runs of before digests were kept count as having read the same.
    """
    found = database.sql("SELECT run_id, value FROM params WHERE key = 'data_digest'").fetchall()
    digests = rows["run_id"].map(dict(found)).where(rows["problem"] == "")
    newest = digests.groupby(rows["task"]).transform("last")  # the last that is known
    return digests.notna() & (digests != newest)


def _tagged(database: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """Runs that carry config, task and a whole-numbered seed: those that bitrank made."""
    pivot = ", ".join(f"any_value(t.value) FILTER (t.key = '{tag}') AS {tag}" for tag in _TAGS)
    made = database.sql(
        f"SELECT run_id, run_name, experiment, status, started, {pivot} FROM runs JOIN tags t USING (run_id) "
        "GROUP BY ALL HAVING config <> '' AND task <> '' AND TRY_CAST(seed AS INTEGER) IS NOT NULL"
    ).df()
    return made.assign(seed=made["seed"].astype(int))


def _experiment(database: duckdb.DuckDBPyConnection, tagged: pd.DataFrame, asked: str | None) -> str:
    found = sorted(set(tagged["experiment"]))
    if asked in found:
        return str(asked)
    if not found:
        runs = database.sql("SELECT count(*) FROM runs").fetchall()[0][0]
        raise AnalysisError(
            f"expected runs with the tags config, task and seed, as bitrank makes them; the store has {runs} runs and none carries all "
            "three, so it is empty or another tool's: run `make matrix`, or give another store"
        )
    if asked is not None:
        raise AnalysisError(
            f"there is no experiment {asked!r} with runs of bitrank; expected one of {', '.join(found)}"
        )
    if len(found) > 1:
        raise AnalysisError(f"the store holds several experiments; name one of {', '.join(found)}")
    return str(found[0])


def _finals(database: duckdb.DuckDBPyConnection, experiment: str) -> dict[str, dict[str, float]]:
    """Final metrics by run and key."""
    found: dict[str, dict[str, float]] = {}
    sql = "SELECT run_id, key, value FROM final_metrics SEMI JOIN (SELECT run_id FROM runs WHERE experiment = ?) USING (run_id)"
    for run_id, key, value in database.execute(sql, [experiment]).fetchall():
        found.setdefault(run_id, {})[key] = value
    return found


def _row(run: dict[str, Any], finals: dict[str, float]) -> dict[str, Any]:
    """One run as a row; ``problem`` says why it cannot be compared ("" when it can)."""
    known = [key for key in METRICS if key in finals]
    kind, metric, higher = METRICS[known[0]] if known else ("", "", True)
    quality = finals[known[0]] if known else float("nan")
    row: dict[str, Any] = {key: _text(run[key]) for key in _TEXTS}
    row |= {
        "seed": run["seed"],
        "kind": kind,
        "metric": metric,
        "higher_is_better": higher,
        "quality": quality,
    }
    row["zero"] = finals.get(f"zero/{metric}", float("nan"))
    row |= {column: finals.get(key, float("nan")) for column, key in _FIGURES.items()}
    return row | {
        "problem": _problem(run, known, quality, sorted(key for key in finals if key.startswith("eval/")))
    }


def _problem(run: dict[str, Any], known: list[str], quality: float, measured: list[str]) -> str:
    failure, finding = _text(run["failure"]), _text(run["finding"])
    if run["status"] != "FINISHED" and finding:
        return f"diverged: {finding}"
    if run["status"] != "FINISHED":
        word = {"FAILED": "failed", "KILLED": "killed", "RUNNING": "running"}.get(
            run["status"], run["status"].lower()
        )
        return f"{word}: {failure}" if failure else word
    if not known:
        return f"finished with a metric that is not known: expected one of {', '.join(METRICS)}, got {', '.join(measured) or 'none'}"
    if len(known) > 1:
        return f"finished with both {' and '.join(known)}: which of them counts is not known"
    return (
        ""
        if abs(quality) < float("inf")
        else f"finished, but its {known[0]} is {quality}, not a number to compare"
    )


def _missing(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Cells of the full grid without a run to compare; the reason is that of the newest try."""
    done = set(runs[_CELL].itertuples(index=False, name=None))
    newest = {(row.config, row.task, row.seed): (row.status, row.problem) for row in rows.itertuples()}
    grid = [
        (c, t, s)
        for t in sorted(set(rows["task"]))
        for c in sorted(set(rows["config"]))
        for s in sorted(set(rows["seed"]))
    ]
    absent = ("ABSENT", "absent: it was not run")
    return pd.DataFrame(
        [(*cell, *newest.get(cell, absent)) for cell in grid if cell not in done],
        columns=[*_CELL, "status", "reason"],
    )


def _notes(foreign: int, doubled: int, other_data: int, runs: pd.DataFrame) -> tuple[str, ...]:
    stale = list(runs.loc[runs["stale"], "run_name"])
    odd = [f"{run.run_name} ({run.settings})" for run in runs.itertuples() if run.settings]
    text = {
        f"Runs left out because they lack the tags config, task and seed: {foreign}.": foreign,
        f"Runs left out because their task has a newer run on other data: {other_data}.": other_data,
        f"Runs left out for another of the same config, task and seed that is newer or has the usual settings: {doubled}.": doubled,
        f"Trained with other settings than most runs of their task: {'; '.join(odd)}.": len(odd),
        f"Made by other code than the newest runs: {', '.join(stale)}.": len(stale),
    }
    return tuple(sentence for sentence, count in text.items() if count)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
