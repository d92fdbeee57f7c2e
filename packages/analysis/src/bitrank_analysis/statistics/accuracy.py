"""Two classifiers on the same examples: McNemar's exact test, Newcombe's interval, what could have been seen, and equivalence.

Counts throughout: ``both`` right, ``gain`` (only the candidate right), ``loss`` (only the baseline right), ``neither``. The difference
is candidate − baseline = (gain − loss) / n.
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

MARGIN = 0.01  # one point of accuracy


@dataclass(frozen=True)
class Paired:
    """Counts of one pair of arms over the same examples."""

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
    """Counts from which answers were right, (N,) each. Raises :class:`AnalysisError` on none, or on different lengths."""
    if len(candidate_N) != len(baseline_N) or len(candidate_N) == 0:
        raise AnalysisError(
            f"expected the same examples for both arms, got {len(candidate_N)} and {len(baseline_N)}"
        )
    a, b = candidate_N.astype(bool), baseline_N.astype(bool)
    return Paired(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))


def mcnemar_exact(pairs: Paired) -> float:
    """Two-sided exact p of McNemar's test (1947). It is conservative: with few discordant pairs it rejects in less than α of nulls.

    With no discordant pair it is 1.
    """
    return float(mcnemar([[pairs.both, pairs.gain], [pairs.loss, pairs.neither]], exact=True).pvalue)


def newcombe(pairs: Paired, alpha: float = 0.05) -> tuple[float, float]:
    """Interval of the difference: method 10 of Newcombe (1998), "Improved confidence intervals for the difference between binomial
    proportions based on paired data", *Statistics in Medicine* 17, 2635–2650.

    Wilson's intervals of both proportions, joined by the square-and-add rule with the continuity-corrected correlation φ*. Its limits
    lie in [−1, 1] and have width even with no discordant pair.
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
    """Newcombe's φ*: the correlation of the pairs, drawn in towards 0 by n/2 when it is positive."""
    e, f, g, h, n = pairs.both, pairs.gain, pairs.loss, pairs.neither, pairs.n
    margins = (e + f) * (g + h) * (e + g) * (f + h)
    product = e * h - f * g
    corrected = max(product - n / 2, 0.0) if product > 0 else product
    return corrected / sqrt(margins) if margins else 0.0


def tango_score(pairs: Paired, difference: float) -> float:
    """The score statistic z of "the true difference is ``difference``": Tango (1998), "Equivalence test and confidence interval for
    the difference in proportions for the paired-sample design", *Statistics in Medicine* 17, 891–908, eqs. 4–6.

    At difference 0 it is McNemar's z without correction. 0 where the difference fits the counts without any spread.
    """
    n, gap = pairs.n, pairs.gain - pairs.loss - pairs.n * difference
    linear = 2 * n * difference - pairs.gain - pairs.loss - (pairs.gain - pairs.loss) * difference
    constant = -pairs.loss * difference * (1 - difference)
    nuisance = (sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * nuisance + difference * (1 - difference))
    return 0.0 if gap == 0 else gap / sqrt(variance) if variance > 0 else float("inf") * gap


def equivalence(pairs: Paired, margin: float = MARGIN) -> float:
    """p of TOST for paired proportions: the larger of Tango's two one-sided score tests against ±``margin``."""
    if not 0 < margin < 1:
        raise AnalysisError(f"expected a margin between 0 and 1, got {margin}")
    return float(max(stats.norm.sf(tango_score(pairs, -margin)), stats.norm.cdf(tango_score(pairs, margin))))


def best_equivalence(discordant: int, n: int, margin: float = MARGIN) -> float:
    """The least p that TOST could give with this many discordant pairs: that of gains and losses in balance.

    Where it is not below α, this test set cannot show "as good as", whatever the arms are worth.
    """
    return equivalence(Paired(n - discordant, discordant - discordant // 2, discordant // 2, 0), margin)


def smallest_significant(discordant: int, alpha: float = 0.05) -> int | None:
    """The least \\|gain − loss\\| that McNemar's exact test calls significant with this many discordant pairs; None when nothing is.

    Fewer than six discordant pairs can never give p < 0.05.
    """
    for gap in range(discordant % 2, discordant + 1, 2):
        if mcnemar_exact(Paired(0, (discordant + gap) // 2, (discordant - gap) // 2, 0)) < alpha:
            return gap
    return None


def detectable(discordant_share: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The accuracy difference that McNemar's test finds with this ``power`` on ``n`` examples.

    Connor (1987), "Sample size for testing differences in proportions for the paired-sample design", *Biometrics* 43, 207–211:
    δ√n = z(α/2)·√ψ + z(β)·√(ψ − δ²), where ψ is the observed share of discordant pairs, or δ itself where fewer pairs than that
    disagreed (a difference δ needs that many). 1 when even that is not enough.
    """
    z_alpha, z_power = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)

    def lacking(delta: float) -> float:
        share = max(discordant_share, delta)
        return float(z_alpha * sqrt(share) + z_power * sqrt(max(share - delta**2, 0.0)) - delta * sqrt(n))

    return 1.0 if lacking(1.0) > 0 else float(optimize.brentq(lacking, 1e-12, 1.0))
