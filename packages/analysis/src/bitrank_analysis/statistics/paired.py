"""Paired tests: from the values of two arms on the same examples to difference, interval and p-values.

An entry of :data:`PAIRED_TESTS` serves every metric whose values have its form. Columns are those of
:func:`~bitrank_analysis.statistics.compare.compare`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.statistics import accuracy, perplexity
from bitrank_analysis.statistics.confidence import (
    Confidence,
    SeedError,
    of_bounded,
    of_documents,
    of_swaps,
)
from bitrank_analysis.statistics.intervals import Floats
from bitrank_analysis.statistics.swaps import CorpusCounts

NAN = float("nan")


@dataclass(frozen=True)
class Pair:
    """Values of two arms on the same examples, over S common seeds; ``seeds`` is the error over them.

    ``counts`` are those of a metric of the whole test set, None for other metrics.
    """

    candidate_SN: Floats
    baseline_SN: Floats
    weights_N: Floats
    seeds: SeedError | None
    counts: CorpusCounts | None = None

    @property
    def gaps_SN(self) -> Floats:
        return self.candidate_SN - self.baseline_SN

    @property
    def is_binary(self) -> bool:
        """Whether all values are 0 or 1: those of an example with several answers may be between them."""
        return all(
            bool(np.isin(values_SN, (0.0, 1.0)).all()) for values_SN in (self.candidate_SN, self.baseline_SN)
        )


@dataclass(frozen=True)
class ComparisonSettings:
    """``family`` is the number of rows that the correction covers; ``margin`` is the equivalence margin."""

    alpha: float
    margin: float
    family: int


@dataclass(frozen=True)
class PairedTest:
    """A test by the form of the values.

    ``row`` compares two arms. ``interval`` is the interval of one arm's mean over examples at ``alpha``, from
    its values (N,) and weights (N,). ``bounded`` values are within [0, 1] and have weight 1; values that are
    not are tested by sign flips, which need enough documents.
    """

    about: str
    bounded: bool
    row: Callable[[Pair, ComparisonSettings], dict[str, Any]]
    interval: Callable[[Floats, Floats, float], tuple[float, float]]


def _right_or_wrong(pair: Pair, settings: ComparisonSettings) -> dict[str, Any]:
    """McNemar and Newcombe with one seed; the padded normal and the error over seeds with several.

    Shares of right answers of an example have no discordant pairs; they are compared as other shares are.
    """
    if not pair.is_binary:
        return _share(pair, settings)
    gaps_SN = pair.gaps_SN
    gain, loss = int((gaps_SN > 0).sum()), int((gaps_SN < 0).sum())
    row: dict[str, Any] = {"discordant_gain": gain, "discordant_loss": loss, "margin": settings.margin}
    row |= {"effect": gain / (gain + loss) - 0.5 if gain + loss else NAN, "effect_name": "Cohen's g"}
    if len(gaps_SN) == 1:
        counts = accuracy.count_pairs(pair.candidate_SN[0] > 0, pair.baseline_SN[0] > 0)
        return row | _one_seed_of_accuracy(counts, settings)
    return row | _bounded_row(pair, settings)


def _one_seed_of_accuracy(pairs: accuracy.Paired, settings: ComparisonSettings) -> dict[str, Any]:
    discordant, margin = pairs.gain + pairs.loss, settings.margin
    low, high = accuracy.newcombe(pairs, settings.alpha)
    family_low, family_high = accuracy.newcombe(pairs, settings.alpha / settings.family)
    least = accuracy.smallest_significant(discordant, settings.alpha)
    return {
        "low": low, "high": high, "family_low": family_low, "family_high": family_high,
        "p": accuracy.mcnemar_exact(pairs), "test": "McNemar, exact",
        "detectable": accuracy.detectable(discordant / pairs.n, pairs.n, settings.alpha),
        "least_significant": NAN if least is None else least / pairs.n,
        "tost_p": accuracy.equivalence(pairs, margin),
        "tost_best_p": accuracy.best_equivalence(discordant, pairs.n, margin),
    }  # fmt: skip


def _share(pair: Pair, settings: ComparisonSettings) -> dict[str, Any]:
    """The padded normal, for values between 0 and 1."""
    effect = perplexity.effect_size(pair.gaps_SN.mean(axis=0), pair.weights_N)
    return _bounded_row(pair, settings) | {"effect": effect, "effect_name": "d_z"}


def _bounded_row(pair: Pair, settings: ComparisonSettings) -> dict[str, Any]:
    found = of_bounded(pair.gaps_SN.mean(axis=0), seeds=pair.seeds)
    return _from_confidence(found, settings, "normal over examples", pair.seeds)


def _sign_flips(pair: Pair, settings: ComparisonSettings) -> dict[str, Any]:
    """Random signs of the differences of documents, for values of any size and weight."""
    gaps_N = pair.gaps_SN.mean(axis=0)
    found = of_documents(gaps_N, pair.weights_N, pair.seeds)
    row = _from_confidence(found, settings, "sign flips of documents", pair.seeds)
    return row | {"effect": perplexity.effect_size(gaps_N, pair.weights_N), "effect_name": "d_z"}


def _corpus(pair: Pair, settings: ComparisonSettings) -> dict[str, Any]:
    """Random exchanges of examples between the arms, for scores of the whole test set."""
    if pair.counts is None:
        raise AnalysisError("a test over the whole test set needs the counts of each example, got none")
    row = _from_confidence(of_swaps(pair.counts, pair.seeds), settings, "exchanged examples", pair.seeds)
    effect = perplexity.effect_size(pair.gaps_SN.mean(axis=0), pair.weights_N)
    return row | {"effect": effect, "effect_name": "d_z"}


def _from_confidence(
    found: Confidence, settings: ComparisonSettings, test: str, seeds: SeedError | None
) -> dict[str, Any]:
    low, high = found.interval(settings.alpha)
    family_low, family_high = found.interval(settings.alpha / settings.family)
    return {
        "low": low, "high": high, "family_low": family_low, "family_high": family_high, "p": found.p,
        "test": f"{test}, moderated t over seeds" if seeds else test, "detectable": found.detectable(),
        "tost_p": found.equivalence(settings.margin),
        "tost_best_p": found.centred().equivalence(settings.margin),
        "margin": settings.margin,
    }  # fmt: skip


def _wilson(mean_N: Floats, weights_N: Floats, alpha: float) -> tuple[float, float]:
    low, high = proportion_confint(float(mean_N.sum()), len(weights_N), alpha, method="wilson")
    return float(low), float(high)


def _share_interval(mean_N: Floats, weights_N: Floats, alpha: float) -> tuple[float, float]:
    """The padded normal around the middle of [0, 1]."""
    low, high = of_bounded(mean_N - 0.5, span=0.5).interval(alpha)
    return low + 0.5, high + 0.5


def _flip_interval(mean_N: Floats, weights_N: Floats, alpha: float) -> tuple[float, float]:
    if len(weights_N) < 2:
        return NAN, NAN
    return of_documents(mean_N, weights_N).interval(alpha)


def _jackknife_interval(mean_N: Floats, weights_N: Floats, alpha: float) -> tuple[float, float]:
    """Student's t with the error of jackknife pseudo-values ``mean_N``."""
    count = len(mean_N)
    if count < 2:
        return NAN, NAN
    half = stats.t.ppf(1 - alpha / 2, count - 1) * mean_N.std(ddof=1) / np.sqrt(count)
    return float(mean_N.mean() - half), float(mean_N.mean() + half)


PAIRED_TESTS: dict[str, PairedTest] = {
    "right or wrong": PairedTest(
        "0 or 1 per example: McNemar, Newcombe, Tango; shares where an example has several answers",
        True,
        _right_or_wrong,
        _wilson,
    ),
    "shares": PairedTest("values in [0, 1], one per example", True, _share, _share_interval),
    "sign flips": PairedTest("sums and weights of documents", False, _sign_flips, _flip_interval),
    "corpus": PairedTest("counts, for a score of the whole test set", False, _corpus, _jackknife_interval),
}


def paired_test(name: str) -> PairedTest:
    """Entry ``name`` of :data:`PAIRED_TESTS`. Raises :class:`AnalysisError` with the names for another."""
    if name not in PAIRED_TESTS:
        raise AnalysisError(f"unknown paired test {name!r}: expected one of {', '.join(PAIRED_TESTS)}")
    return PAIRED_TESTS[name]
