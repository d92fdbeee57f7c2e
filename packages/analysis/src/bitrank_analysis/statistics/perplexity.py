"""Two language models on the same documents, the unit of analysis: windows are not independent.

With d the candidate's loss minus the baseline's (nats, summed over a document) and T its tokens, the estimand
is Σd / ΣT, the log ratio of total perplexities. Its test, interval and equivalence test flip the signs of
documents (:mod:`~bitrank_analysis.statistics.signflips`).
"""

from __future__ import annotations

from bitrank_analysis.statistics.intervals import Floats, linearised


def effect_size(values_N: Floats, weights_N: Floats) -> float:
    """Cohen's d_z: mean over standard deviation of the linearized paired differences; NaN without spread."""
    numbers_N = linearised(values_N, weights_N)
    ratio, spread = float(values_N.sum() / weights_N.sum()), float(numbers_N.std(ddof=1))
    return ratio / spread if spread > 1e-12 * abs(ratio) else float("nan")
