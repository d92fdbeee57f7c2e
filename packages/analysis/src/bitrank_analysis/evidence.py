"""All that figures, tables and the report say of one task, gathered once as plain frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.matrix_names import nominal_bits, with_place
from bitrank_analysis.statistics import arms, compare, factorial, pareto
from bitrank_analysis.study import Study


@dataclass(frozen=True)
class Evidence:
    """Frames about ``task``; their columns are those of the functions that made them.

    ``ranks`` has config, seed, matrix, layer, module, step (NaN, and ``final`` true, for the end), rank;
    ``plans`` has config, seed, matrix, layer, module, format, bits, rank; ``curves`` has config, seed, key,
    step, value. ``gaps`` tells what could not be worked out, and why; ``notes`` what the statistics say of
    themselves.
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
    gaps: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def configs(self) -> list[str]:
        """The arms that were run, in the study's order."""
        return list(self.arms["config"])

    @property
    def seeds(self) -> int:
        """How many seeds the arms have in common at least."""
        return int(self.arms["seeds"].min())

    def measured(self, *columns: str) -> pd.DataFrame:
        """The runs that have a number in each of ``columns``. Raises :class:`AnalysisError` when none has."""
        known = self.runs.dropna(subset=list(columns))
        if known.empty:
            raise AnalysisError(
                f"expected runs of {self.task} with {', '.join(columns)}, got none that measured it; run them again"
            )
        return known

    def left_out(self, shown: pd.DataFrame) -> str:
        """A sentence on the arms that ``shown`` lacks, "" when it has all."""
        missing = [name for name in self.configs if name not in set(shown["config"])]
        return f" Not measured in {', '.join(missing)}." if missing else ""


# The arms of the study in the order in which a reader meets them; others follow by name.
ORDER = ("B-FP", "B-Q4", "B-Ada", "Joint-1", "Joint-2", "Joint-3")
BASELINES = ("B-FP", "B-Q4")


def config_order(names: Any) -> list[str]:
    """Distinct ``names``, known arms first in the study's order."""
    return sorted(set(names), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def gather(study: Study, task: str) -> Evidence:
    """Everything about ``task``. Raises :class:`AnalysisError` when the study has no finished run of it."""
    runs = study.runs[study.runs["task"] == task]
    if runs.empty:
        known = ", ".join(sorted(study.runs["task"].unique())) or "none"
        raise AnalysisError(
            f"expected a task with finished runs ({known}), got {task!r}; run it first, or give another"
        )
    gaps: dict[str, str] = {}
    first = runs.iloc[0]
    comparisons = _or_gap(gaps, "comparisons", lambda: compare(study, task, baselines=BASELINES))
    effects = _or_gap(gaps, "factorial", lambda: factorial(study, task))
    return Evidence(
        task=task,
        kind=str(first["kind"]),
        metric=str(first["metric"]),
        higher_is_better=bool(first["higher_is_better"]),
        runs=_ordered(runs),
        arms=_ordered(arms(study, task)),
        comparisons=_ordered(comparisons, "candidate", "baseline"),
        front=_ordered(_or_gap(gaps, "front of stored size", lambda: pareto(study, task, x="model_mib"))),
        memory_front=_ordered(
            _or_gap(gaps, "front of peak memory", lambda: pareto(study, task, x="peak_mib"))
        ),
        factorial=effects,
        ranks=_of_task(study, runs, "SELECT run_id, matrix, step, rank, final FROM ranks"),
        plans=_with_bits(
            _of_task(study, runs, "SELECT run_id, matrix, format, rank FROM plans WHERE format IS NOT NULL")
        ),
        curves=_curves(study, runs),
        gaps=gaps,
        notes=tuple(dict.fromkeys([*comparisons.attrs.get("notes", ()), *effects.attrs.get("notes", ())])),
    )


def _or_gap(gaps: dict[str, str], name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The frame, or an empty one with the reason kept in ``gaps``: the report prints every gap."""
    try:
        return make()
    except AnalysisError as error:
        gaps[name] = str(error)
        return pd.DataFrame()


def _ordered(frame: pd.DataFrame, column: str = "config", above: str = "") -> pd.DataFrame:
    """Rows by arm in the study's order; first by the arm in ``above`` where one is given."""
    if frame.empty:
        return frame
    columns = [above, column] if above else [column]
    places = {
        name: at for at, name in enumerate(config_order(value for each in columns for value in frame[each]))
    }
    return frame.sort_values(columns, key=lambda names: names.map(places), kind="stable").reset_index(
        drop=True
    )


def _of_task(study: Study, runs: pd.DataFrame, query: str) -> pd.DataFrame:
    found = study.database.sql(query).df()
    named = found.merge(runs[["run_id", "config", "seed"]], on="run_id")
    return with_place(named).drop(columns="run_id")


def _with_bits(plans: pd.DataFrame) -> pd.DataFrame:
    return plans.assign(bits=plans["format"].map(nominal_bits))


def _curves(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    query = "SELECT run_id, key, step, value FROM metrics WHERE key LIKE 'train/%' OR key LIKE 'val/%' ORDER BY step"
    return (
        study.database.sql(query)
        .df()
        .merge(runs[["run_id", "config", "seed"]], on="run_id")
        .drop(columns="run_id")
    )
