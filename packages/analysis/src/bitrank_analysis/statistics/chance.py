"""Detection of classifiers at chance level: one collapsed run lowers the mean over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.study import Study

_NEAR = 0.05  # accuracy above chance that counts as learning even if a small test set shows no significance
_DRAWS = 999  # random permutations of the predictions; p-values are multiples of 1/1000


def chance_level(study: Study, task: str) -> float | None:
    """Return the chance level of ``task``, such as the share of its most frequent class.

    None for a metric without a chance level, or if no run's predictions can be read.
    """
    for run in study.runs[study.runs["task"] == task].itertuples():
        chance = metric_of(str(run.metric)).chance
        if chance is None:
            continue
        try:
            return chance.level(study.predictions(str(run.run_id)))
        except AnalysisError:
            continue
    return None


def how_reached(study: Study, task: str) -> str:
    """Return the strategy that gives the chance level of ``task``; "" if its metric has none."""
    metrics = study.runs.loc[study.runs["task"] == task, "metric"]
    return next((chance.how for key in metrics if (chance := metric_of(key).chance)), "")


def at_chance(study: Study, alpha: float = 0.05, task: str | None = None) -> list[str]:
    """Return a sentence for each run whose test quality is not above the chance level of its metric.

    A run is listed if the exact binomial test at ``alpha`` is not significant, the quality is less than 5
    points above that level, and its predictions tell nothing about the labels: a classifier that finds half
    of a rare class is little better than naming the most frequent one, but it has learned. Runs without
    readable predictions are skipped.
    """
    found = []
    runs = study.runs if task is None else study.runs[study.runs["task"] == task]
    for run in runs.itertuples():
        metric = metric_of(str(run.metric))
        if metric.chance is None:
            continue
        try:
            rows = study.predictions(str(run.run_id))
            right = int(metric.examples.read(rows, str(run.run_name))["value"].sum())
        except AnalysisError:
            continue  # loading the arms reports unreadable predictions
        share, count = metric.chance.level(rows), len(rows)
        shown = stats.binomtest(right, count, share, alternative="greater").pvalue < alpha
        near = share < 1 and not shown and right / count < share + _NEAR
        if near and not _tells(rows, alpha):
            found.append(
                f"{run.run_name} ended at chance: {100 * right / count:.1f} % right, where "
                f"{metric.chance.how} is right in {100 * share:.1f} %. Its training collapsed; means over "
                "seeds include it."
            )
    return found


def _tells(rows: pd.DataFrame, alpha: float) -> bool:
    """Whether predictions are right more often than random permutations of them (a test at ``alpha``).

    Permutations keep the frequency of each class, so predictions of one class are as good as all of theirs.
    """
    codes, _ = pd.factorize(pd.concat([rows["label"], rows["prediction"]]))
    labels_N, predictions_N = np.split(codes, 2)
    right = int((labels_N == predictions_N).sum())
    random = np.random.default_rng(0)
    drawn = (int((labels_N == random.permutation(predictions_N)).sum()) for _ in range(_DRAWS))
    return (1 + sum(count >= right for count in drawn)) / (1 + _DRAWS) < alpha
