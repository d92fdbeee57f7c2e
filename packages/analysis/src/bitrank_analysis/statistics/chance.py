"""Classifiers that learned nothing: a collapsed run drags a mean over seeds down, and a reader must know."""

from __future__ import annotations

from scipy import stats

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.study import Study

_NEAR = 0.05  # a run further above chance than this did learn something, though few examples may not show it


def at_chance(study: Study, alpha: float = 0.05) -> list[str]:
    """A sentence for each run whose test accuracy is not above the share of the most frequent class (exact binomial test)."""
    found = []
    for run in study.runs[study.runs["kind"] == "classification"].itertuples():
        try:
            rows = study.predictions(str(run.run_id))
        except AnalysisError:
            continue  # what cannot be read is said elsewhere
        share = float(rows["label"].value_counts(normalize=True).max())
        right, count = int((rows["label"] == rows["prediction"]).sum()), len(rows)
        shown = stats.binomtest(right, count, share, alternative="greater").pvalue < alpha
        if share < 1 and not shown and right / count < share + _NEAR:
            found.append(
                f"{run.run_name} ended at chance: {100 * right / count:.1f} % right, where naming the most frequent class is right in "
                f"{100 * share:.1f} %. Its training collapsed; means over seeds include it."
            )
    return found
