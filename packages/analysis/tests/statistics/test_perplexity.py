"""Paired documents: estimand, sign flips against scipy, intervals, and both sources of error."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bitrank_analysis import AnalysisError
from bitrank_analysis.statistics.confidence import Confidence, SeedError, of_bounded, of_documents
from bitrank_analysis.statistics.intervals import linearised, padded
from bitrank_analysis.statistics.perplexity import effect_size
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

numbers = st.floats(-50, 50).map(lambda x: round(x, 3))
documents = st.lists(st.tuples(numbers, st.integers(1, 500)), min_size=2, max_size=30)


def random_documents(count: int, seed: int = 0, gap: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    tokens = np.maximum(np.rint(np.exp(generator.normal(np.log(900), 1.2, count))), 5)
    return (gap + generator.normal(0, 0.03, count)) * tokens, tokens


@given(documents)
def test_estimand_is_the_ratio_of_total_perplexities(pairs: list[tuple[float, int]]) -> None:
    gaps, tokens = np.array([gap for gap, _ in pairs]), np.array([float(count) for _, count in pairs])
    baseline = 3.0 * tokens
    ratio = math.exp((baseline + gaps).sum() / tokens.sum()) / math.exp(baseline.sum() / tokens.sum())
    assert math.exp(of_documents(gaps, tokens).value) == pytest.approx(ratio, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(numbers, st.integers(1, 500)), min_size=2, max_size=9))
def test_p_equals_scipys_exact_permutation_test(pairs: list[tuple[float, int]]) -> None:
    """Counting ratios of subsets equals flipping signs, for documents of any lengths."""
    gaps, tokens = (
        np.array([round(gap * 1000) for gap, _ in pairs]),
        np.array([float(count) for _, count in pairs]),
    )
    reference = stats.permutation_test(
        (gaps,),
        lambda x, axis: np.abs(x.sum(axis=axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
        alternative="greater",
    )
    assert of_documents(gaps.astype(float), tokens).p == pytest.approx(reference.pvalue)


@pytest.mark.parametrize("count", [8, 12, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_interval_contains_exactly_the_differences_not_rejected(count: int, alpha: float) -> None:
    gaps, tokens = random_documents(count, gap=0.02)
    low, high = of_documents(gaps, tokens).interval(alpha)
    step = 1e-7 * (high - low)
    for limit, inside, outside in ((low, step, -step), (high, -step, step)):
        assert of_documents(gaps - (limit + inside) * tokens, tokens).p >= alpha * (1 - 1e-9)
        assert of_documents(gaps - (limit + outside) * tokens, tokens).p < alpha * (1 - 1e-9)


@given(st.integers(6, 12), st.floats(-0.05, 0.05))
def test_equivalence_equals_two_one_sided_tests_at_the_margins(count: int, gap: float) -> None:
    gaps, tokens = random_documents(count, gap=gap)
    found, margin = of_documents(gaps, tokens), 0.02
    above = of_documents(gaps + margin * tokens, tokens).below(0.0)
    below = of_documents(gaps - margin * tokens, tokens).above(0.0)
    assert found.equivalence(margin) == pytest.approx(max(above, below))
    low, high = found.interval(0.1)
    assert (found.equivalence(margin) < 0.05) == (low > -margin and high < margin)


def test_many_equal_documents_approach_students_t() -> None:
    gaps, tokens = np.random.default_rng(0).normal(2, 5, 60), np.full(60, 100.0)
    found, reference = of_documents(gaps, tokens), stats.ttest_1samp(gaps / 100, 0)
    interval = reference.confidence_interval(0.95)
    low, high = found.interval()
    assert (low, high) == pytest.approx(
        (interval.low, interval.high), abs=0.05 * (interval.high - interval.low)
    )
    assert found.p == pytest.approx(reference.pvalue, abs=0.01)
    assert effect_size(gaps, tokens) == pytest.approx(gaps.mean() / gaps.std(ddof=1))


def test_random_sign_flips_are_reproducible() -> None:
    gaps, tokens = random_documents(40, gap=0.01)
    assert of_documents(gaps, tokens).interval() == of_documents(gaps, tokens).interval()


@pytest.mark.parametrize(("count", "least"), [(2, 0.5), (5, 2 / 32), (6, 2 / 64)])
def test_few_documents_give_no_small_p_and_no_interval(count: int, least: float) -> None:
    tokens = np.arange(1.0, count + 1)
    found = of_documents(3.0 * tokens + 0.001 * np.arange(count), tokens)
    assert found.p == pytest.approx(least)
    assert math.isnan(found.interval()[0]) == math.isnan(found.detectable()) == (least >= 0.05)


def test_data_without_spread_give_degenerate_results() -> None:
    tokens = np.arange(10.0, 110.0, 10.0)
    same = of_documents(0 * tokens, tokens)
    assert (same.value, same.interval(), same.p) == (0.0, (0.0, 0.0), 1.0)
    assert math.isnan(effect_size(0 * tokens, tokens)) and same.equivalence(0.02) == pytest.approx(2**-10)
    shifted = of_documents(0.5 * tokens, tokens)
    assert (shifted.value, shifted.p, shifted.equivalence(0.02)) == pytest.approx((0.5, 2**-9, 1.0))
    assert shifted.interval() == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([1.0], [1.0], "two or more examples"),
        ([1.0, math.nan], [1.0, 1.0], "finite values"),
        ([1.0, 2.0], [1.0, 0.0], "positive weights"),
    ],
)
def test_invalid_values_or_weights_raise(values: list[float], weights: list[float], message: str) -> None:
    for take in (linearised, of_documents):
        with pytest.raises(AnalysisError, match=message):
            take(np.array(values), np.array(weights))


def test_margin_of_zero_raises() -> None:
    with pytest.raises(AnalysisError, match="margin above 0"):
        of_documents(*random_documents(10)).equivalence(0.0)


def test_padded_interval_equals_bonett_and_price() -> None:
    # Bonett & Price (2012), eq. 3: difference (c+1 - b-1)/(n+2) with variance
    # (p12 + p21 - (p12 - p21)^2)/(n+2).
    gain, loss, n = 1, 7, 21  # Bentur (2009); Fagerland et al. (2014) print -0.508 to -0.013
    found = of_bounded(np.array([1.0] * gain + [-1.0] * loss + [0.0] * (n - gain - loss)))
    assert [round(limit, 3) for limit in found.interval()] == [-0.508, -0.013]
    assert found.value == pytest.approx(-6 / 21)
    low, high = of_bounded(np.zeros(100)).interval()
    assert (
        of_bounded(np.zeros(100)).p == pytest.approx(1.0) and 0 < high < 0.03 and low == pytest.approx(-high)
    )


def test_errors_over_examples_and_seeds_add_as_independent() -> None:
    """For many seeds the sum of two normals has a known error; for few seeds it is wider."""
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 500, p=[0.05, 0.85, 0.1])
    centre, error = padded(values)
    many, few = (of_bounded(values, seeds=SeedError(2 * error, df)) for df in (1e9, 2.0))
    half = 1.959964 * math.hypot(error, 2 * error)
    assert many.interval() == pytest.approx((centre - half, centre + half), abs=1e-3 * half)
    assert many.p == pytest.approx(2 * stats.norm.sf(abs(centre) / math.hypot(error, 2 * error)), rel=1e-3)
    assert few.interval()[0] < many.interval()[0] and few.p > many.p
    t_alone = 2 * error * stats.t.ppf(0.975, 2.0)
    assert t_alone < (few.interval()[1] - few.interval()[0]) / 2 < math.hypot(t_alone, 1.96 * error) * 1.05


def test_seed_error_widens_the_interval_and_keeps_the_estimate() -> None:
    gaps, tokens = random_documents(30, gap=0.03)
    alone, both = of_documents(gaps, tokens), of_documents(gaps, tokens, SeedError(0.01, 4.0))
    assert both.value == alone.value and both.p > alone.p
    assert both.interval()[0] < alone.interval()[0] < alone.interval()[1] < both.interval()[1]
    small_seed_error = of_documents(gaps, tokens, SeedError(1e-7, 4.0)).interval()
    assert small_seed_error == pytest.approx(
        alone.interval(), abs=0.02 * (alone.interval()[1] - alone.interval()[0])
    )


@given(st.floats(-0.05, 0.05), st.floats(0.001, 0.05), st.floats(1.5, 30), st.sampled_from([0.05, 0.0056]))
def test_interval_and_test_agree(gap: float, error: float, df: float, alpha: float) -> None:
    found = of_documents(*random_documents(12, gap=gap), SeedError(error, df))
    low, high = found.interval(alpha)
    if abs(found.p - alpha) > 1e-6:
        assert (found.p < alpha) == (low > 0 or high < 0)
    assert low <= found.points_B[-1] and high >= found.points_B[0]


def test_detectable_difference_is_found_with_the_stated_power() -> None:
    sample = np.random.default_rng(3).normal(0, 1, 50)
    delta = of_documents((sample - sample.mean()) / sample.std(ddof=1), np.ones(50)).detectable()
    generator = np.random.default_rng(4)
    drawn = generator.normal(delta, 1, (4000, 50))
    found = stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.04)


def test_centred_distribution_has_the_same_spread_around_zero() -> None:
    found = of_documents(*random_documents(20, gap=0.1))
    centred: Confidence = found.centred()
    assert centred.value == 0.0 and centred.equivalence(0.05) < found.equivalence(0.05)
    assert np.diff(centred.interval()) == pytest.approx(np.diff(found.interval()))
