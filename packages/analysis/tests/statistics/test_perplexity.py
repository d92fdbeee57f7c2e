"""Paired documents: the estimand, the tests against scipy, and what happens without spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bitrank_analysis import AnalysisError
from bitrank_analysis.statistics.intervals import linearised, padded_estimate, t_estimate
from bitrank_analysis.statistics.perplexity import bca, detectable, effect_size, equivalence
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

numbers = st.floats(-50, 50).map(lambda x: round(x, 3))
documents = st.lists(st.tuples(numbers, st.integers(1, 500)), min_size=2, max_size=30)


@given(documents)
def test_the_estimand_is_the_ratio_of_total_perplexities(pairs: list[tuple[float, int]]) -> None:
    gaps, tokens = np.array([gap for gap, _ in pairs]), np.array([float(count) for _, count in pairs])
    baseline = 3.0 * tokens
    ratio = math.exp((baseline + gaps).sum() / tokens.sum()) / math.exp(baseline.sum() / tokens.sum())
    assert math.exp(t_estimate(gaps, tokens).value) == pytest.approx(ratio, rel=1e-9)


def test_equal_documents_give_scipys_t_test() -> None:
    gaps, tokens = np.random.default_rng(0).normal(2, 5, 40), np.full(40, 100.0)
    found, peer = t_estimate(gaps, tokens), stats.ttest_1samp(gaps / 100, 0)
    interval = peer.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((peer.pvalue, interval.low, interval.high))
    assert effect_size(gaps, tokens) == pytest.approx(gaps.mean() / gaps.std(ddof=1))
    below, above = (stats.ttest_1samp(gaps / 100, bound, alternative=side).pvalue for bound, side in ((-0.05, "greater"), (0.05, "less")))
    assert equivalence(gaps, tokens, 0.05) == pytest.approx(max(below, above))


def test_the_standard_error_is_near_the_jackknifes_for_unequal_documents() -> None:
    generator = np.random.default_rng(1)
    tokens = generator.integers(50, 2000, 60).astype(float)
    gaps = generator.normal(0.02, 0.05, 60) * tokens
    left_out = (gaps.sum() - gaps) / (tokens.sum() - tokens)
    jackknife = math.sqrt(59 / 60 * ((left_out - left_out.mean()) ** 2).sum())
    assert t_estimate(gaps, tokens).error == pytest.approx(jackknife, rel=0.05)


def test_bootstrap_is_seeded_and_near_the_t_interval() -> None:
    generator = np.random.default_rng(2)
    tokens = generator.integers(100, 900, 200).astype(float)
    gaps = generator.normal(0.02, 0.05, 200) * tokens
    low, high = bca(gaps, tokens)
    found = t_estimate(gaps, tokens)
    assert (low, high) == bca(gaps, tokens) != bca(gaps, tokens, seed=1)
    assert (low, high) == pytest.approx((found.low, found.high), abs=0.15 * (high - low))


def test_without_spread_nothing_is_invented() -> None:
    tokens = np.array([10.0, 20.0, 30.0])
    same = t_estimate(0 * tokens, tokens)
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    assert bca(0 * tokens, tokens) == (0.0, 0.0) and math.isnan(effect_size(0 * tokens, tokens))
    assert equivalence(0 * tokens, tokens, 0.02) == 0.0
    shifted = t_estimate(0.5 * tokens, tokens)
    assert (shifted.value, shifted.p) == (0.5, 0.0) and equivalence(0.5 * tokens, tokens, 0.02) == 1.0


def test_detectable_is_found_with_the_power_it_promises() -> None:
    generator = np.random.default_rng(3)
    sample = generator.normal(0, 1, 50)
    sample = (sample - sample.mean()) / sample.std(ddof=1)
    delta = detectable(sample, np.ones(50))
    found = stats.ttest_1samp(generator.normal(delta, 1, (4000, 50)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("values", "weights", "said"),
    [([1.0], [1.0], "two or more examples"), ([1.0, math.nan], [1.0, 1.0], "finite values"), ([1.0, 2.0], [1.0, 0.0], "positive weights")],
)
def test_bad_numbers_are_refused(values: list[float], weights: list[float], said: str) -> None:
    with pytest.raises(AnalysisError, match=said):
        linearised(np.array(values), np.array(weights))


def test_padded_interval_is_bonett_and_prices() -> None:
    # Bonett & Price (2012), eq. 3: differences (c+1 - b-1)/(n+2) with variance (p12 + p21 - (p12 - p21)^2)/(n+2).
    gain, loss, n = 1, 7, 21  # Bentur (2009); Fagerland et al. (2014) print -0.508 to -0.013
    found = padded_estimate(np.array([1.0] * gain + [-1.0] * loss + [0.0] * (n - gain - loss)))
    assert (round(found.low, 3), round(found.high, 3)) == (-0.508, -0.013)
    assert found.value == pytest.approx(-6 / 21)
    same = padded_estimate(np.zeros(100))
    assert same.p == 1.0 and 0 < same.high < 0.03 and same.low == -same.high
