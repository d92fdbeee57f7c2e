"""Detection of classifiers at chance level: one collapsed run lowers the mean over seeds."""

from __future__ import annotations

from scipy import stats

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.study import Study

_NEAR = 0.05  # accuracy above chance that counts as learning even if a small test set shows no significance


def chance_level(study: Study, task: str) -> float | None:
    """Return the share of the most frequent class among the test examples of ``task``.

    None for a language task, or if no run's predictions can be read.
    """
    runs = study.runs[(study.runs["task"] == task) & (study.runs["kind"] == "classification")]
    for run_id in runs["run_id"]:
        try:
            labels = study.predictions(str(run_id))["label"]
        except AnalysisError:
            continue
        return float(labels.value_counts(normalize=True).max())
    return None


def at_chance(study: Study, alpha: float = 0.05, task: str | None = None) -> list[str]:
    """Return a sentence for each run whose test accuracy is not above the most frequent class's share.

    A run is listed if the exact binomial test at ``alpha`` is not significant and the accuracy is less than 5
    points above that share. Runs without readable predictions are skipped.
    """
    found = []
    runs = study.runs[study.runs["kind"] == "classification"]
    for run in (runs if task is None else runs[runs["task"] == task]).itertuples():
        try:
            rows = study.predictions(str(run.run_id))
        except AnalysisError:
            continue  # loading the arms reports unreadable predictions
        share = float(rows["label"].value_counts(normalize=True).max())
        right, count = int((rows["label"] == rows["prediction"]).sum()), len(rows)
        shown = stats.binomtest(right, count, share, alternative="greater").pvalue < alpha
        if share < 1 and not shown and right / count < share + _NEAR:
            found.append(
                f"{run.run_name} ended at chance: {100 * right / count:.1f} % right, where naming the most "
                "frequent class is right in "
                f"{100 * share:.1f} %. Its training collapsed; means over seeds include it."
            )
    return found
