"""The share of a baseline's score that a candidate keeps, with an interval.

For scores between 0 and 1 (accuracy, F1) the share is R = Σ candidate / Σ baseline over the same examples and
seeds. Its error is that of the linearized ratio, (c_n − R·b_n) / mean(b) (Cochran, *Sampling Techniques*, 3rd
ed., 1977, eq. 6.13), with the variation over seeds added as in every comparison
(:mod:`~bitrank_analysis.statistics.confidence`). For a perplexity, where lower is better, the share is
baseline / candidate, so that 1 is equal and less is worse: the exponential of minus the log ratio, whose
interval inverts the sign-flip test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.statistics.confidence import SeedError, of_bounded, of_documents
from bitrank_analysis.statistics.examples import ArmResults, common_seeds
from bitrank_analysis.statistics.intervals import Floats
from bitrank_analysis.statistics.moderation import SeedSpread
from bitrank_analysis.statistics.paired import paired_test


@dataclass(frozen=True)
class Share:
    """``value`` is the share; 1 is all. ``low`` and ``high`` are its interval (NaN: too few documents).

    ``seeds`` is the number of common seeds.
    """

    value: float
    low: float
    high: float
    seeds: int


def share_kept(
    candidate: ArmResults, baseline: ArmResults, spread: SeedSpread | None, alpha: float = 0.05
) -> Share:
    """Return the share of ``baseline``'s score that ``candidate`` keeps, with its interval at ``alpha``.

    ``spread`` is the variation over seeds of all arms of the task; with one seed the interval is over
    examples alone. Raises :class:`AnalysisError` for arms without a common seed, a baseline with a score of
    0, and metrics of a whole test set, which have no values of examples.
    """
    shared = common_seeds(candidate, baseline)
    metric = metric_of(candidate.metric)
    if not shared:
        raise AnalysisError(f"{candidate.config} and {baseline.config} have no seed in common")
    if candidate.counts is not None:
        raise AnalysisError(f"{metric.name} is a score of the whole test set, of which no share is computed")
    ours_SN, theirs_SN, weights_N = candidate.over(shared), baseline.over(shared), candidate.weights_N
    total = weights_N.sum()
    if metric.is_log:
        gaps_SN = ours_SN - theirs_SN
        seeds = _seed_error(spread, gaps_SN.sum(axis=1) / total, 2.0, 1.0)
        found = of_documents(gaps_SN.mean(axis=0), weights_N, seeds)
        sign = 1.0 if metric.higher_is_better else -1.0
        ends = sorted(math.exp(sign * limit) for limit in found.interval(alpha))
        return Share(math.exp(sign * found.value), ends[0], ends[1], len(shared))
    mean = float(theirs_SN.sum() / len(shared) / total)
    if mean == 0.0:
        raise AnalysisError(f"{baseline.config} has a score of 0, of which there is no share")
    share = float(ours_SN.sum() / theirs_SN.sum())
    rests_SN = ours_SN - share * theirs_SN
    seeds = _seed_error(spread, rests_SN.sum(axis=1) / total, 1.0 + share**2, mean)
    rests_N = rests_SN.mean(axis=0) / mean
    if paired_test(metric.test).bounded:
        found = of_bounded(rests_N, max(1.0, share) / mean, seeds)
    else:
        found = of_documents(rests_N, weights_N, seeds)
    low, high = found.interval(alpha)
    return Share(share, share + low, share + high, len(shared))


def _seed_error(spread: SeedSpread | None, contrasts_S: Floats, size: float, mean: float) -> SeedError | None:
    """The error over seeds of the mean of ``contrasts_S`` divided by ``mean``; None with one seed."""
    if spread is None or len(contrasts_S) < 2:
        return None
    found = spread.error(contrasts_S, size)
    return SeedError(found.error / mean, found.df)
