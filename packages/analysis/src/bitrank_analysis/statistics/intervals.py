"""What every test here returns, and the one estimator that serves both kinds of task.

An arm's quality is a ratio of sums, Σ value / Σ weight. For accuracy the value is 1 where the answer is right and every weight is 1.
For log-perplexity the value is a document's loss in nats and the weight its tokens, so the ratio is that of *total* perplexities and
long documents count as they do in the perplexity itself. Differences and contrasts of arms on the same examples have this form too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bitrank_analysis.errors import AnalysisError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """An estimate with its interval, standard error and two-sided p against zero; NaN where it cannot be had."""

    value: float
    low: float
    high: float
    error: float
    p: float


def linearised(values_N: Floats, weights_N: Floats) -> Floats:
    """Numbers (N,) whose mean is R = Σv / Σw and whose spread gives R's standard error: R + (v − R·w) / mean(w).

    The linearisation of the ratio estimator (Cochran, *Sampling Techniques*, 3rd ed., 1977, eq. 6.13). With equal weights it returns
    ``values / weight``. Raises :class:`AnalysisError` when a value is not finite or a weight not positive.
    """
    if len(values_N) != len(weights_N) or len(values_N) < 2:
        raise AnalysisError(f"expected two or more examples with one weight each, got {len(values_N)} values and {len(weights_N)} weights")
    if not np.isfinite(values_N).all() or not (weights_N > 0).all():
        raise AnalysisError("expected finite values and positive weights; a loss is NaN or infinite, or an example has no tokens")
    ratio = values_N.sum() / weights_N.sum()
    return np.asarray(ratio + (values_N - ratio * weights_N) / weights_N.mean(), dtype=np.float64)


def t_estimate(values_N: Floats, weights_N: Floats, alpha: float = 0.05) -> Estimate:
    """Σ value / Σ weight with Student's interval over examples and the t test against zero.

    Without any spread the standard error is 0: the interval is the value itself, and p is 1 when that is zero and 0 otherwise.
    """
    numbers_N = linearised(values_N, weights_N)
    value, error = float(numbers_N.mean()), float(stats.sem(numbers_N))
    if error <= 1e-12 * abs(value) or error == 0.0:
        return Estimate(value, value, value, 0.0, 1.0 if value == 0.0 else 0.0)
    half = float(stats.t.ppf(1 - alpha / 2, len(numbers_N) - 1)) * error
    return Estimate(value, value - half, value + half, error, float(stats.ttest_1samp(numbers_N, 0.0).pvalue))


def padded_estimate(values_N: Floats, alpha: float = 0.05, span: float = 1.0) -> Estimate:
    """The mean of bounded paired differences in [−span, span] with an interval that stays honest when few of them differ from zero.

    Two imagined examples, one at +span and one at −span, join in before the standard error is taken. For differences of right and
    wrong this is the adjusted Wald interval of Bonett & Price (2012), "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data", *J. Educ. Behav. Stat.* 37(4): (b + 1, c + 1) of n + 2. ``value`` is the plain mean.
    """
    if len(values_N) < 2:
        raise AnalysisError(f"expected two or more examples, got {len(values_N)}")
    padded_M = np.concatenate([values_N, [span, -span]])
    centre, error = float(padded_M.mean()), float(padded_M.std() / np.sqrt(len(padded_M)))
    half = float(stats.norm.ppf(1 - alpha / 2)) * error
    low, high = max(centre - half, -span), min(centre + half, span)
    return Estimate(float(values_N.mean()), low, high, error, float(2 * stats.norm.sf(abs(centre) / error)))
