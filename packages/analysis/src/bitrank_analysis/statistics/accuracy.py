"""Two classifiers on the same examples: McNemar's test, Newcombe's interval, power and equivalence.

All functions use the counts of paired outcomes: ``both`` right, ``gain`` (only the candidate right), ``loss``
(only the baseline right) and ``neither``. The difference is candidate − baseline = (gain − loss) / n.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from bitrank_analysis.errors import AnalysisError


@dataclass(frozen=True)
class Paired:
    """Counts of paired outcomes of two arms on the same examples."""

    both: int
    gain: int
    loss: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.gain + self.loss + self.neither

    @property
    def difference(self) -> float:
        return (self.gain - self.loss) / self.n


def count_pairs(candidate_N: NDArray[np.bool_], baseline_N: NDArray[np.bool_]) -> Paired:
    """Count paired outcomes from arrays of shape (N,) that are true where the answer is right.

    Raises :class:`AnalysisError` for empty arrays or different lengths.
    """
    if len(candidate_N) != len(baseline_N) or len(candidate_N) == 0:
        raise AnalysisError(
            f"expected the same examples for both arms, got {len(candidate_N)} and {len(baseline_N)}"
        )
    a, b = candidate_N.astype(bool), baseline_N.astype(bool)
    return Paired(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))


def mcnemar_exact(pairs: Paired) -> float:
    """Two-sided p-value of McNemar's exact test (1947); 1 without discordant pairs.

    The test is conservative: with few discordant pairs it rejects fewer than α of true null hypotheses.
    """
    return float(mcnemar([[pairs.both, pairs.gain], [pairs.loss, pairs.neither]], exact=True).pvalue)


def newcombe(pairs: Paired, alpha: float = 0.05) -> tuple[float, float]:
    """Confidence interval of the difference by method 10 of Newcombe (1998).

    The method combines Wilson intervals of both proportions by the square-and-add rule with the
    continuity-corrected correlation φ*. The limits are within [−1, 1], and the interval has a positive width
    even without discordant pairs.

    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", *Statistics in Medicine* 17 (1998), 2635–2650.
    """
    right_a, right_b, n = pairs.both + pairs.gain, pairs.both + pairs.loss, pairs.n
    a, b = right_a / n, right_b / n
    low_a, high_a = proportion_confint(right_a, n, alpha, method="wilson")
    low_b, high_b = proportion_confint(right_b, n, alpha, method="wilson")
    phi = _correlation(pairs)
    down = (a - low_a) ** 2 - 2 * phi * (a - low_a) * (high_b - b) + (high_b - b) ** 2
    up = (high_a - a) ** 2 - 2 * phi * (high_a - a) * (b - low_b) + (b - low_b) ** 2
    return pairs.difference - sqrt(max(down, 0.0)), pairs.difference + sqrt(max(up, 0.0))


def _correlation(pairs: Paired) -> float:
    """Newcombe's φ*: the correlation of the pairs, corrected for continuity if positive.

    The correction reduces the numerator by n/2, not below 0.
    """
    e, f, g, h, n = pairs.both, pairs.gain, pairs.loss, pairs.neither, pairs.n
    margins = (e + f) * (g + h) * (e + g) * (f + h)
    product = e * h - f * g
    corrected = max(product - n / 2, 0.0) if product > 0 else product
    return corrected / sqrt(margins) if margins else 0.0


def tango_score(pairs: Paired, difference: float) -> float:
    """Score statistic z of the hypothesis that the true difference is ``difference``.

    At difference 0 it equals McNemar's z without continuity correction. It is 0 if the observed difference
    equals ``difference``, and infinite if the variance is 0 otherwise.

    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", *Statistics in Medicine* 17 (1998), 891–908, eqs. 4–6.
    """
    n, gap = pairs.n, pairs.gain - pairs.loss - pairs.n * difference
    linear = 2 * n * difference - pairs.gain - pairs.loss - (pairs.gain - pairs.loss) * difference
    constant = -pairs.loss * difference * (1 - difference)
    nuisance = (sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * nuisance + difference * (1 - difference))
    return 0.0 if gap == 0 else gap / sqrt(variance) if variance > 0 else float("inf") * gap


def equivalence(pairs: Paired, margin: float) -> float:
    """p-value of TOST for paired proportions: the larger of two one-sided Tango score tests at ±``margin``.

    Raises :class:`AnalysisError` for a margin outside (0, 1).
    """
    if not 0 < margin < 1:
        raise AnalysisError(f"expected a margin between 0 and 1, got {margin}")
    return float(max(stats.norm.sf(tango_score(pairs, -margin)), stats.norm.cdf(tango_score(pairs, margin))))


def best_equivalence(discordant: int, n: int, margin: float) -> float:
    """Smallest p-value that TOST can give with this number of discordant pairs: gains and losses balanced.

    If it is not below α, this test set cannot show equivalence at any true difference of the arms.
    """
    return equivalence(Paired(n - discordant, discordant - discordant // 2, discordant // 2, 0), margin)


def smallest_significant(discordant: int, alpha: float = 0.05) -> int | None:
    r"""Smallest \|gain − loss\| that is significant by McNemar's exact test; None if none is.

    ``discordant`` is the number of discordant pairs. Fewer than six can never give p < 0.05.
    """
    for gap in range(discordant % 2, discordant + 1, 2):
        if mcnemar_exact(Paired(0, (discordant + gap) // 2, (discordant - gap) // 2, 0)) < alpha:
            return gap
    return None


def detectable(discordant_share: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Accuracy difference that McNemar's test detects with this ``power`` on ``n`` examples.

    It solves δ√n = z(α/2)·√ψ + z(β)·√(ψ − δ²) for δ, where ψ is the observed share of discordant pairs, but
    at least δ, because a difference of δ needs that many discordant pairs. Returns 1 if no difference can be
    detected.

    R. J. Connor, "Sample size for testing differences in proportions for the paired-sample design",
    *Biometrics* 43 (1987), 207–211.
    """
    z_alpha, z_power = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)

    def lacking(delta: float) -> float:
        share = max(discordant_share, delta)
        return float(z_alpha * sqrt(share) + z_power * sqrt(max(share - delta**2, 0.0)) - delta * sqrt(n))

    return 1.0 if lacking(1.0) > 0 else float(optimize.brentq(lacking, 1e-12, 1.0))
