"""A difference as a confidence distribution, from which test, interval and equivalence are derived.

A single distribution makes the three consistent with each other. It is the convolution of two independent
sources of error (as for Behrens–Fisher):

- *examples*: the variation of the difference over other examples for the same trained models. Sign flips of
  documents, or a normal distribution with padded error for right and wrong answers.
- *seeds*: the variation over other seeds. Student's t with the moderated error of
  :mod:`~bitrank_analysis.statistics.moderation`.

The spread over seeds contains the contribution of examples, which therefore counts twice: the sum is
conservative. With one seed only the first source exists, and :mod:`~bitrank_analysis.statistics.verdicts`
names such results differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special, stats

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.statistics.intervals import Floats, padded
from bitrank_analysis.statistics.signflips import subset_ratios
from bitrank_analysis.statistics.swaps import CorpusCounts, swapped_differences

_GRID_Z = np.linspace(-7.0, 7.0, 281)
_GRID_WEIGHTS = stats.norm.pdf(_GRID_Z) / stats.norm.pdf(_GRID_Z).sum()
_SMEARED = 1001  # number of points kept if the t distribution smooths them
_Z_ALPHA, _Z_POWER = float(stats.norm.ppf(0.975)), float(stats.norm.ppf(0.8))


@dataclass(frozen=True)
class SeedError:
    """Standard error over seeds of a mean difference, and its degrees of freedom."""

    error: float
    df: float


@dataclass(frozen=True)
class Confidence:
    """A mixture of Student's t distributions centred at ``points_B`` with ``weights_B`` (sum 1).

    ``error`` scales each component and ``df`` are its degrees of freedom; with ``error`` 0 the points
    themselves are the distribution. ``value`` is the estimate. ``least`` is the smallest one-sided p-value
    that the data allow: few documents have few sign flips.
    """

    value: float
    points_B: Floats
    weights_B: Floats
    least: float = 0.0
    error: float = 0.0
    df: float = np.inf

    def below(self, limit: float) -> float:
        """One-sided p-value of the hypothesis that the difference is at most ``limit``."""
        return self._share(limit - self.points_B)

    def above(self, limit: float) -> float:
        """One-sided p-value of the hypothesis that the difference is at least ``limit``."""
        return self._share(self.points_B - limit)

    @property
    def p(self) -> float:
        """Two-sided p-value of the hypothesis of no difference."""
        return min(1.0, 2 * min(self.below(0.0), self.above(0.0)))

    def equivalence(self, margin: float) -> float:
        """TOST p-value for a difference within ±``margin``.

        Raises :class:`AnalysisError` unless the margin is above 0.
        """
        if not margin > 0:
            raise AnalysisError(f"expected a margin above 0, got {margin}")
        return min(1.0, max(self.below(-margin), self.above(margin)))

    def centred(self) -> Confidence:
        """The same distribution shifted to a difference of 0: the result if the arms were equal."""
        return replace(self, value=0.0, points_B=self.points_B - self.value)

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """All differences that the test does not reject at ``alpha``; (NaN, NaN) if it can reject none."""
        if self.least >= alpha / 2:
            return float("nan"), float("nan")
        tail = (alpha / 2 - self.least) / (1 - self.least)
        if self.error == 0.0:
            return self._quantile(tail), -replace(self, points_B=-self.points_B[::-1])._quantile(tail)
        return self._root(self.below, alpha / 2, tail, -1), self._root(self.above, alpha / 2, tail, 1)

    def detectable(self) -> float:
        """Difference detected with 80 % power at 5 %, from the interval's width; NaN without an interval."""
        low, high = self.interval(0.05)
        return (high - low) / 2 * (_Z_ALPHA + _Z_POWER) / _Z_ALPHA

    def _share(self, room_B: Floats) -> float:
        inside_B = room_B >= 0 if self.error == 0.0 else self._smear(room_B / self.error)
        return float(self.least + (1 - self.least) * (self.weights_B @ inside_B))

    def _smear(self, steps_B: Floats) -> Floats:
        """CDF of Student's t without the argument checks of :mod:`scipy.stats`: an interval needs dozens."""
        return np.asarray(special.ndtr(steps_B) if self.df == np.inf else special.stdtr(self.df, steps_B))

    def _quantile(self, tail: float) -> float:
        """The first point at which the cumulative weight reaches ``tail``."""
        reached = np.searchsorted(np.cumsum(self.weights_B), tail * (1 - 1e-12))
        return float(self.points_B[min(int(reached), len(self.points_B) - 1)])

    def _root(self, share: Callable[[float], float], target: float, tail: float, side: int) -> float:
        """The limit at which ``share`` (``below`` or ``above``) equals ``target``."""
        reach = side * -float(stats.t.ppf(tail, self.df)) * self.error
        slack = 1e-6 * self.error
        first, last = float(self.points_B[0]) + reach - slack, float(self.points_B[-1]) + reach + slack
        return float(optimize.brentq(lambda limit: share(limit) - target, first, last))


def of_documents(values_N: Floats, weights_N: Floats, seeds: SeedError | None = None) -> Confidence:
    """Distribution of Σ value / Σ weight over documents, by sign flips and the error over ``seeds``.

    ``values_N`` are means over seeds.
    """
    points_B, least = subset_ratios(values_N, weights_N)
    return _of_points(float(values_N.sum() / weights_N.sum()), points_B, least, seeds)


def of_swaps(counts: CorpusCounts, seeds: SeedError | None = None) -> Confidence:
    """Distribution of the difference of a corpus score, by exchanges of examples and the error over seeds."""
    points_B, least = swapped_differences(counts)
    return _of_points(float(counts.difference()), points_B, least, seeds)


def _of_points(value: float, points_B: Floats, least: float, seeds: SeedError | None) -> Confidence:
    if seeds is None or seeds.error == 0.0:
        return Confidence(value, points_B, np.full(len(points_B), 1 / len(points_B)), least)
    smeared = points_B[np.linspace(0, len(points_B) - 1, min(len(points_B), _SMEARED)).round().astype(int)]
    return Confidence(value, smeared, np.full(len(smeared), 1 / len(smeared)), least, seeds.error, seeds.df)


def of_bounded(values_N: Floats, span: float = 1.0, seeds: SeedError | None = None) -> Confidence:
    """Distribution of the mean of values in [−span, span], by the padded normal and the error over ``seeds``.

    ``values_N`` are means over seeds.
    """
    centre, error = padded(values_N, span)
    value = float(values_N.mean())
    if seeds is None or seeds.error == 0.0:
        return Confidence(value, np.array([centre]), np.ones(1), error=error)
    return Confidence(value, centre + error * _GRID_Z, _GRID_WEIGHTS, error=seeds.error, df=seeds.df)
