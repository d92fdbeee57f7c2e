"""Two language models on the same documents. A document is the unit: its windows are not independent.

With d the candidate's loss minus the baseline's (nats, summed over a document) and T its tokens, the estimand is Σd / ΣT, the log of the
ratio of total perplexities. The t test works on its linearisation, the bootstrap resamples documents and recomputes the ratio.
"""

from __future__ import annotations

from math import log

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.statistics.intervals import Floats, linearised, t_estimate

MARGIN = log(1.02)  # two per cent of perplexity, as a log ratio
RESAMPLES = 5000


def bca(values_N: Floats, weights_N: Floats, alpha: float = 0.05, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The BCa bootstrap interval of Σ value / Σ weight over documents (Efron 1987, *JASA* 82, 171–185; scipy.stats.bootstrap).

    Without any spread it is the ratio itself.
    """
    if np.ptp(linearised(values_N, weights_N)) <= 1e-12 * np.abs(values_N).max():
        ratio = float(values_N.sum() / weights_N.sum())
        return ratio, ratio
    found = stats.bootstrap(
        (values_N, weights_N), _ratio, paired=True, vectorized=True, n_resamples=resamples, batch=500,
        confidence_level=1 - alpha, method="BCa", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def effect_size(values_N: Floats, weights_N: Floats) -> float:
    """Cohen's d_z: the mean over the standard deviation of the linearised paired differences; NaN without spread."""
    spread = float(linearised(values_N, weights_N).std(ddof=1))
    return float(values_N.sum() / weights_N.sum()) / spread if spread > 0 else float("nan")


def equivalence(values_N: Floats, weights_N: Floats, margin: float = MARGIN) -> float:
    """p of the two one-sided t tests (Schuirmann 1987) that the log ratio lies within ±``margin``. 0 or 1 without any spread."""
    if margin <= 0:
        raise AnalysisError(f"expected a margin above 0, got {margin}")
    found = t_estimate(values_N, weights_N)
    if found.error == 0.0:
        return 0.0 if abs(found.value) < margin else 1.0
    free = len(values_N) - 1
    return float(max(stats.t.sf((found.value + margin) / found.error, free), stats.t.cdf((found.value - margin) / found.error, free)))


def best_equivalence(values_N: Floats, weights_N: Floats, margin: float = MARGIN) -> float:
    """The least p that TOST could give with this spread over documents: that of a ratio of exactly 1."""
    ratio = float(values_N.sum() / weights_N.sum())
    return equivalence(values_N - ratio * weights_N, weights_N, margin)


def detectable(values_N: Floats, weights_N: Floats, alpha: float = 0.05, power: float = 0.8) -> float:
    """The log ratio that the t test finds with this ``power``, given the spread and number of these documents."""
    spread = float(linearised(values_N, weights_N).std(ddof=1))
    return spread * float(TTestPower().solve_power(nobs=len(values_N), alpha=alpha, power=power))


def _ratio(values: Floats, weights: Floats, axis: int = -1) -> Floats:
    return np.asarray(values.sum(axis=axis) / weights.sum(axis=axis))
