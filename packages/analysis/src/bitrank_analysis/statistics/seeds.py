"""Seeds as blocks: both arms of a pair share a seed, so only differences within a seed count.

:mod:`~bitrank_analysis.statistics.confidence` and :mod:`~bitrank_analysis.statistics.moderation` include
seeds in a verdict. With one seed this is impossible; :data:`ONE_SEED` is the note for that case.
"""

from __future__ import annotations

from scipy import stats

from bitrank_analysis.statistics.intervals import Floats

ONE_SEED = (
    "One seed was run: tests and intervals speak of other examples for these trained models. They cannot "
    "tell whether another seed "
    "would give the same order, so no arm is called better, worse or as good."
)


def over_seeds(qualities_S: Floats, alpha: float = 0.05) -> tuple[float, float]:
    """Student's t interval of the mean of per-seed numbers (S,); (NaN, NaN) with one seed."""
    if len(qualities_S) < 2:
        return float("nan"), float("nan")
    mean, half = (
        float(qualities_S.mean()),
        float(stats.t.ppf(1 - alpha / 2, len(qualities_S) - 1) * stats.sem(qualities_S)),
    )
    return mean - half, mean + half
