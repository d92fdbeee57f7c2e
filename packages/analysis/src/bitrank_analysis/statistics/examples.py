"""Arrays of per-example results: one order of examples for all arms of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.statistics.intervals import Floats
from bitrank_analysis.study import Study

_COLUMNS = {"acc": ["id", "label", "prediction"], "ppl": ["id", "loss", "tokens"]}


@dataclass(frozen=True)
class Arm:
    """One config on one task: S seeds over N examples (classification) or documents (language modelling).

    ``values_SN`` is 1 for a right answer and 0 for a wrong one, or a document's loss in nats. ``weights_N``
    is 1, or the document's number of tokens. Σ value / Σ weight is the accuracy or the log-perplexity.
    """

    config: str
    metric: str
    seeds: tuple[int, ...]
    values_SN: Floats
    weights_N: Floats

    @property
    def n(self) -> int:
        return len(self.weights_N)

    def over(self, seeds: tuple[int, ...]) -> Floats:
        """Values (S, N) of these seeds, in their order."""
        return self.values_SN[[self.seeds.index(seed) for seed in seeds]]

    def quality(self, seeds: tuple[int, ...] | None = None) -> float:
        """Accuracy, or perplexity (of the mean log-perplexity over seeds)."""
        mean = float(self.over(seeds or self.seeds).mean(axis=0).sum() / self.weights_N.sum())
        return mean if self.metric == "acc" else float(np.exp(mean))


def load_arms(study: Study, task: str) -> dict[str, Arm]:
    """Return every arm of ``task`` by config.

    Raises :class:`AnalysisError` if the study does not contain the task, a run has no predictions, or two
    runs were evaluated on different examples, which cannot be paired.
    """
    runs = study.runs[study.runs["task"] == task].sort_values(["config", "seed"], kind="stable")
    if runs.empty:
        raise AnalysisError(
            f"there is no finished run of task {task!r}; expected one of "
            f"{', '.join(sorted(set(study.runs['task']))) or '(none)'}"
        )
    records = runs.to_dict("records")
    frames = [_examples(study, run) for run in records]
    for run, frame in zip(records[1:], frames[1:], strict=True):
        _same_examples((records[0], frames[0]), (run, frame))
    weights_N = frames[0]["weight"].to_numpy(dtype=np.float64)
    values = [frame["value"].to_numpy(dtype=np.float64) for frame in frames]
    arms = {}
    for config in dict.fromkeys(run["config"] for run in records):
        mine = [n for n, run in enumerate(records) if run["config"] == config]
        seeds = tuple(int(records[n]["seed"]) for n in mine)
        arms[config] = Arm(
            config, records[mine[0]]["metric"], seeds, np.stack([values[n] for n in mine]), weights_N
        )
    return arms


def common_seeds(*arms: Arm) -> tuple[int, ...]:
    """Seeds that all of the arms have, in order."""
    return tuple(seed for seed in arms[0].seeds if all(seed in arm.seeds for arm in arms))


def _examples(study: Study, run: dict[str, Any]) -> pd.DataFrame:
    """``value``, ``weight`` and ``key`` by example id, sorted; ``key`` must be equal in all runs."""
    name, predictions = f"{run['run_name']} ({run['run_id']})", study.predictions(run["run_id"])
    lacking = [column for column in _COLUMNS[run["metric"]] if column not in predictions]
    if lacking or predictions.empty:
        raise AnalysisError(
            f"the predictions of {name} have no {' and no '.join(lacking) or 'rows'}; expected "
            f"{_COLUMNS[run['metric']]}"
        )
    if run["metric"] == "acc":
        frame = _right(predictions, name)
    else:
        frame = (
            predictions.groupby("id", sort=True)[["loss", "tokens"]]
            .sum(min_count=1)
            .rename(columns={"loss": "value", "tokens": "weight"})
        )
        frame["key"] = frame["weight"]
    if not np.isfinite(frame[["value", "weight"]].to_numpy(dtype=np.float64)).all() or predictions[
        _COLUMNS[run["metric"]]
    ].isna().any(axis=None):
        raise AnalysisError(
            f"the predictions of {name} hold values that are not finite; it cannot be compared: run it again"
        )
    return frame


def _right(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    if predictions["id"].duplicated().any():
        raise AnalysisError(
            f"the predictions of {name} hold {predictions['id'].duplicated().sum()} ids twice; expected one "
            "row an example"
        )
    rows = predictions.set_index("id").sort_index()
    return pd.DataFrame(
        {"value": (rows["label"] == rows["prediction"]).astype(float), "weight": 1.0, "key": rows["label"]}
    )


def _same_examples(
    first: tuple[dict[str, Any], pd.DataFrame], other: tuple[dict[str, Any], pd.DataFrame]
) -> None:
    (run_a, a), (run_b, b) = first, other
    names = f"{run_a['run_name']} ({run_a['run_id']}) and {run_b['run_name']} ({run_b['run_id']})"
    if run_a["metric"] != run_b["metric"] or run_a["model"] != run_b["model"]:
        raise AnalysisError(
            f"{names} cannot be paired: model {run_a['model']} with {run_a['metric']} against model "
            f"{run_b['model']} with {run_b['metric']}"
        )
    apart = a.index.symmetric_difference(b.index)
    if len(apart):
        raise AnalysisError(
            f"{names} were evaluated on different examples: {len(apart)} ids are in only one of them; they "
            "cannot be paired"
        )
    changed = int((a["key"].to_numpy() != b["key"].to_numpy()).sum())
    if changed:
        what = "labels" if run_a["metric"] == "acc" else "numbers of tokens"
        raise AnalysisError(
            f"{names} were evaluated on different examples: {changed} ids have other {what}; they cannot be "
            "paired"
        )
