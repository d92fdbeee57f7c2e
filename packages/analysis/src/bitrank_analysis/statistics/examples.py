"""Arrays of per-example results: one order of examples for all arms of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.statistics.intervals import Floats
from bitrank_analysis.study import Study

# A row of Study.runs as a dict; value, weight and key by example id. The key must be equal in all runs.
RunExamples = tuple[dict[str, Any], pd.DataFrame]


@dataclass(frozen=True)
class ArmResults:
    """One config on one task: S seeds over N examples or documents.

    The metric's entry decides values and weights. For accuracy ``values_SN`` is 1 for a right answer and 0
    for a wrong one, and ``weights_N`` is 1. For perplexity they are a document's loss in nats and its number
    of tokens. Σ value / Σ weight is the metric, or its logarithm. ``counts`` are those (N, K) of each seed,
    of a metric of the whole test set, None for other metrics.
    """

    config: str
    metric: str
    seeds: tuple[int, ...]
    values_SN: Floats
    weights_N: Floats
    counts: tuple[csr_array, ...] | None = None

    @property
    def n(self) -> int:
        return len(self.weights_N)

    def over(self, seeds: tuple[int, ...]) -> Floats:
        """Values (S, N) of these seeds, in their order."""
        return self.values_SN[self._places(seeds)]

    def counts_over(self, seeds: tuple[int, ...]) -> tuple[csr_array, ...] | None:
        """Counts (N, K) of each of these seeds, in their order; None for metrics without counts."""
        counts = self.counts
        return None if counts is None else tuple(counts[place] for place in self._places(seeds))

    def _places(self, seeds: tuple[int, ...]) -> list[int]:
        return [self.seeds.index(seed) for seed in seeds]

    def quality(self, seeds: tuple[int, ...] | None = None) -> float:
        """The metric; if it is a logarithm's exponential, that of the mean over seeds."""
        mean = float(self.over(seeds or self.seeds).mean(axis=0).sum() / self.weights_N.sum())
        return metric_of(self.metric).of_mean(mean)


def load_arms(study: Study, task: str, metric: str | None = None) -> dict[str, ArmResults]:
    """Return every arm of ``task`` by config, with values of ``metric``; default: the metric of the runs.

    Raises :class:`AnalysisError` if the study does not contain the task, a run has no predictions, or two
    runs were evaluated on different examples, which cannot be paired.
    """
    runs = study.runs[study.runs["task"] == task].sort_values(["config", "seed"], kind="stable")
    if runs.empty:
        raise AnalysisError(
            f"there is no finished run of task {task!r}; expected one of "
            f"{', '.join(sorted(set(study.runs['task']))) or '(none)'}"
        )
    records = runs.assign(metric=runs["metric"] if metric is None else metric).to_dict("records")
    found = [examples_of(study, run) for run in records]
    for other in found[1:]:
        if reason := why_unpaired(found[0], other):
            raise AnalysisError(reason)
    frames = [frame for _, frame in found]
    counts = _counts(study, records)
    weights_N = frames[0]["weight"].to_numpy(dtype=np.float64)
    values = [frame["value"].to_numpy(dtype=np.float64) for frame in frames]
    arms = {}
    for config in dict.fromkeys(run["config"] for run in records):
        mine = [n for n, run in enumerate(records) if run["config"] == config]
        seeds = tuple(int(records[n]["seed"]) for n in mine)
        values_SN = np.stack([values[n] for n in mine])
        own = tuple(counts[n] for n in mine) if counts else None
        arms[config] = ArmResults(config, records[mine[0]]["metric"], seeds, values_SN, weights_N, own)
    return arms


def _counts(study: Study, records: list[dict[str, Any]]) -> list[csr_array]:
    """Counts (N, K) of each run, with the sums of all runs: a sum that a run lacks is 0 there."""
    counts_of = metric_of(records[0]["metric"]).examples.counts
    if counts_of is None:
        return []
    found = [counts_of(study.predictions(run["run_id"]), _name(run)) for run in records]
    names = sorted({*(name for counts in found for name in counts.names)})
    return [counts.over(names) for counts in found]


def common_seeds(*arms: ArmResults) -> tuple[int, ...]:
    """Seeds that all of the arms have, in order."""
    common = set(arms[0].seeds).intersection(*(arm.seeds for arm in arms))
    return tuple(seed for seed in arms[0].seeds if seed in common)


def examples_of(study: Study, run: dict[str, Any]) -> RunExamples:
    """``run``, a row of ``study.runs``, with ``value``, ``weight`` and ``key`` by example id, sorted.

    Raises :class:`AnalysisError` if its predictions lack a column, or a value is not finite.
    """
    name, predictions = _name(run), study.predictions(run["run_id"])
    examples = metric_of(run["metric"]).examples
    lacking = [column for column in examples.columns if column not in predictions]
    if lacking or predictions.empty:
        raise AnalysisError(
            f"the predictions of {name} have no {' and no '.join(lacking) or 'rows'}; expected "
            f"{list(examples.columns)}"
        )
    known = not predictions[list(examples.columns)].isna().any(axis=None)
    frame = examples.read(predictions, name) if known else pd.DataFrame()
    if not known or not np.isfinite(frame[["value", "weight"]].to_numpy(dtype=np.float64)).all():
        raise AnalysisError(
            f"the predictions of {name} hold values that are not finite; it cannot be compared: run it again"
        )
    return run, frame


def _name(run: dict[str, Any]) -> str:
    return f"{run['run_name']} ({run['run_id']})"


def why_unpaired(first: RunExamples, other: RunExamples) -> str:
    """The reason why two runs of one task cannot be compared example by example; "" if they can."""
    (run_a, a), (run_b, b) = first, other
    names = f"{_name(run_a)} and {_name(run_b)}"
    if run_a["metric"] != run_b["metric"] or run_a["model"] != run_b["model"]:
        return (
            f"{names} cannot be paired: model {run_a['model']} with {run_a['metric']} against model "
            f"{run_b['model']} with {run_b['metric']}"
        )
    problem = ""
    apart = a.index.symmetric_difference(b.index)
    if len(apart):
        problem = f"{len(apart)} ids are in only one of them"
    elif changed := int((a["key"].to_numpy() != b["key"].to_numpy()).sum()):
        problem = f"{changed} ids have other {metric_of(run_a['metric']).examples.key_name}"
    return problem and f"{names} were evaluated on different examples: {problem}; they cannot be paired"
