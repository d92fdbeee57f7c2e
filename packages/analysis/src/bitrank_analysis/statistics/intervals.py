"""Ratios of sums over examples, the common form of accuracy and log-perplexity.

The quality of an arm is Σ value / Σ weight. For accuracy the value is 1 for a right answer and every weight
is 1. For log-perplexity the value is a document's loss in nats and the weight is its number of tokens: long
documents count as they do in the *total* perplexity. Differences and contrasts of arms on the same examples
have the same form.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitrank_analysis.errors import AnalysisError

Floats = NDArray[np.float64]


def check_examples(values_N: Floats, weights_N: Floats) -> None:
    """Raise :class:`AnalysisError` for examples that allow no statistics.

    These are fewer than two examples, a value that is not finite, or a weight that is not positive.
    """
    if len(values_N) != len(weights_N) or len(values_N) < 2:
        got = f"{len(values_N)} values and {len(weights_N)} weights"
        raise AnalysisError(f"expected two or more examples with one weight each, got {got}")
    if not np.isfinite(values_N).all() or not (weights_N > 0).all():
        raise AnalysisError(
            "expected finite values and positive weights; a loss is NaN or infinite, or an example has no "
            "tokens"
        )


def linearised(values_N: Floats, weights_N: Floats) -> Floats:
    """Numbers (N,) whose mean is R = Σv / Σw and whose spread gives the large-sample error of R.

    They are R + (v − R·w) / mean(w), the linearization of the ratio estimator (Cochran, *Sampling
    Techniques*, 3rd ed., 1977, eq. 6.13). With equal weights they are ``values / weight``. Raises
    :class:`AnalysisError` as :func:`check_examples` does.
    """
    check_examples(values_N, weights_N)
    ratio = values_N.sum() / weights_N.sum()
    return np.asarray(ratio + (values_N - ratio * weights_N) / weights_N.mean(), dtype=np.float64)


def padded(values_N: Floats, span: float = 1.0) -> tuple[float, float]:
    """Centre and standard error of the mean of bounded paired differences in [−span, span].

    Two pseudo-examples, one at +span and one at −span, are added, so that the error stays valid if few
    differences are not zero. For differences of right and wrong answers this is the adjusted Wald interval of
    Bonett & Price (2012), "Adjusted Wald confidence interval for a difference of binomial proportions based
    on paired data", *J. Educ. Behav. Stat.* 37(4): (b + 1, c + 1) of n + 2. Raises :class:`AnalysisError` for
    fewer than two examples.
    """
    if len(values_N) < 2:
        raise AnalysisError(f"expected two or more examples, got {len(values_N)}")
    padded_M = np.concatenate([values_N, [span, -span]])
    return float(padded_M.mean()), float(padded_M.std() / np.sqrt(len(padded_M)))
