"""Collect the data behind the figures, tables and report of one task as plain frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.hypotheses import Results, findings_on_hypotheses
from bitrank_analysis.matrix_names import nominal_bits, with_place
from bitrank_analysis.metrics import further_metrics
from bitrank_analysis.published import Setting, findings_on_claims
from bitrank_analysis.score_kept import score_kept
from bitrank_analysis.statistics import arms, compare, factorial, pareto
from bitrank_analysis.statistics.examples import load_arms
from bitrank_analysis.study import Study


@dataclass(frozen=True)
class Evidence:
    """Results of ``task``. Each frame has the columns of the function that made it.

    ``ranks`` has config, seed, matrix, layer, module, step (NaN, and ``final`` true, for the end), rank;
    ``plans`` has config, seed, matrix, layer, module, format, bits, rank; ``curves`` has config, seed, key,
    step, value; ``further`` has the comparisons on the other metrics of the task's kind, ``hypotheses`` the
    findings on the study's own hypotheses (:mod:`~bitrank_analysis.hypotheses`) and ``published`` those on
    claims of others (:mod:`~bitrank_analysis.published`). ``gaps`` maps each
    result that could not be computed to the reason; ``notes`` are the remarks of the statistics about their
    own validity.
    """

    task: str
    kind: str
    metric: str
    higher_is_better: bool
    runs: pd.DataFrame
    arms: pd.DataFrame
    comparisons: pd.DataFrame
    front: pd.DataFrame
    memory_front: pd.DataFrame
    factorial: pd.DataFrame
    ranks: pd.DataFrame
    plans: pd.DataFrame
    curves: pd.DataFrame
    further: pd.DataFrame = field(default_factory=pd.DataFrame)
    hypotheses: pd.DataFrame = field(default_factory=pd.DataFrame)
    published: pd.DataFrame = field(default_factory=pd.DataFrame)
    gaps: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def configs(self) -> list[str]:
        """Arms with finished runs, in the study's order."""
        return list(self.arms["config"])

    @property
    def planned(self) -> list[str]:
        """Arms whose formats and ranks a planner chose before training, in the study's order."""
        return config_order(self.runs.loc[self.runs["family"] == PLANNED, "config"])

    @property
    def seeds(self) -> int:
        """Smallest number of seeds of any arm."""
        return int(self.arms["seeds"].min())

    def measured(self, *columns: str) -> pd.DataFrame:
        """Runs with a value in each of ``columns``. Raises :class:`AnalysisError` if there is none."""
        known = self.runs.dropna(subset=list(columns))
        if known.empty:
            raise AnalysisError(
                f"expected runs of {self.task} with {', '.join(columns)}, got none that measured it; "
                "run them again"
            )
        return known

    def left_out(self, shown: pd.DataFrame) -> str:
        """A sentence that names the arms missing from ``shown``; "" if none is."""
        missing = [name for name in self.configs if name not in set(shown["config"])]
        return f" Not measured in {', '.join(missing)}." if missing else ""


# Order of the study's arms in figures and tables; other configs follow by name.
ORDER = ("B-FP", "B-Q4", "B-Ada", "Joint-1", "Joint-2", "Joint-3", "Plan-Q4")
BASELINES = ("B-FP", "B-Q4")
PLANNED = "planned"  # family of the arms whose formats and ranks a planner chose


def config_order(names: Any) -> list[str]:
    """Distinct ``names``: those in ``ORDER`` first, then the others by name."""
    return sorted(set(names), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def gather(study: Study, task: str) -> Evidence:
    """Collect the evidence about ``task``. Raises :class:`AnalysisError` if it has no finished run."""
    runs = study.runs[study.runs["task"] == task]
    if runs.empty:
        known = ", ".join(sorted(study.runs["task"].unique())) or "none"
        raise AnalysisError(
            f"expected a task with finished runs ({known}), got {task!r}; run it first, or choose another"
        )
    gaps: dict[str, str] = {}
    first = runs.iloc[0]
    # Planned arms are compared with every arm: the report names the best one that they must beat.
    baselines = (*BASELINES, *config_order(runs.loc[runs["family"] == PLANNED, "config"]))
    table = arms(study, task)
    comparisons = _or_gap(gaps, "comparisons", lambda: compare(study, task, baselines=baselines))
    front = _or_gap(gaps, "front of stored size", lambda: pareto(study, task, x="stored_mib"))
    results = Results(str(first["metric"]), table, comparisons, front, frozenset(runs["device"]))
    effects = _or_gap(gaps, "factorial", lambda: factorial(study, task))
    kept = _or_gap(gaps, "share of the 16-bit score", lambda: score_kept(load_arms(study, task)))
    return Evidence(
        task=task,
        kind=str(first["kind"]),
        metric=str(first["metric"]),
        higher_is_better=bool(first["higher_is_better"]),
        runs=_ordered(runs),
        arms=_ordered(_with_share(table, kept)),
        comparisons=_ordered(comparisons, "candidate", "baseline"),
        front=_ordered(front),
        memory_front=_ordered(
            _or_gap(gaps, "front of peak memory", lambda: pareto(study, task, x="peak_mib"))
        ),
        factorial=effects,
        ranks=_of_task(study, runs, "SELECT run_id, matrix, step, rank, final FROM ranks"),
        plans=_with_bits(
            _of_task(study, runs, "SELECT run_id, matrix, format, rank FROM plans WHERE format IS NOT NULL")
        ),
        curves=_curves(study, runs),
        further=_or_gap(gaps, "comparisons on further metrics", lambda: _further(study, task, runs)),
        hypotheses=findings_on_hypotheses(results),
        published=_or_gap(
            gaps,
            "findings on published claims",
            lambda: findings_on_claims(load_arms(study, task), Setting(str(first["kind"]), table)),
        ),
        gaps=gaps,
        notes=tuple(dict.fromkeys([*comparisons.attrs.get("notes", ()), *effects.attrs.get("notes", ())])),
    )


def _further(study: Study, task: str, runs: pd.DataFrame) -> pd.DataFrame:
    """Comparisons with the baselines on each metric that all runs' predictions have the columns of."""
    kind, main = str(runs.iloc[0]["kind"]), str(runs.iloc[0]["metric"])
    columns = set.intersection(*(set(study.predictions(run_id).columns) for run_id in runs["run_id"]))
    found = [
        _ordered(compare(study, task, baselines=BASELINES, metric=key), "candidate", "baseline")
        for key in further_metrics(kind, main, columns)
    ]
    tables = [table for table in found if not table.empty]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _with_share(table: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    return table if kept.empty else table.merge(kept, on="config", how="left")


def _or_gap(gaps: dict[str, str], name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """``make()``, or an empty frame with the reason recorded in ``gaps``, which the report prints."""
    try:
        return make()
    except AnalysisError as error:
        gaps[name] = str(error)
        return pd.DataFrame()


def _ordered(frame: pd.DataFrame, column: str = "config", first_by: str = "") -> pd.DataFrame:
    """Sort rows by the study's order of arms: by column ``first_by`` if given, then by ``column``."""
    if frame.empty:
        return frame
    columns = [first_by, column] if first_by else [column]
    names = config_order(name for each in columns for name in frame[each])
    positions = {name: position for position, name in enumerate(names)}
    ordered = frame.sort_values(columns, key=lambda column: column.map(positions), kind="stable")
    return ordered.reset_index(drop=True)


def _of_task(study: Study, runs: pd.DataFrame, query: str) -> pd.DataFrame:
    found = study.database.sql(query).df()
    named = found.merge(runs[["run_id", "config", "seed"]], on="run_id")
    known = study.database.sql("SELECT run_id, matrix FROM ranks UNION SELECT run_id, matrix FROM plans").df()
    matrices = known.loc[known["run_id"].isin(runs["run_id"]), "matrix"].unique()
    return with_place(named, matrices).drop(columns="run_id")


def _with_bits(plans: pd.DataFrame) -> pd.DataFrame:
    return plans.assign(bits=plans["format"].map(nominal_bits))


def _curves(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    query = (
        "SELECT run_id, key, step, value FROM metrics "
        "WHERE key LIKE 'train/%' OR key LIKE 'val/%' ORDER BY step"
    )
    curves = study.database.sql(query).df()
    return curves.merge(runs[["run_id", "config", "seed"]], on="run_id").drop(columns="run_id")
