"""Seeds as blocks, the exact sign-flip test, and Holm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bitrank_analysis import AnalysisError
from bitrank_analysis.statistics.accuracy import Paired, mcnemar_exact
from bitrank_analysis.statistics.families import holm
from bitrank_analysis.statistics.seeds import equivalence, over_seeds, sign_flip
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_with_one_seed_the_sign_flip_is_mcnemar(gain: int, loss: int, same: int) -> None:
    differences = np.array([1] * gain + [-1] * loss + [0] * same, dtype=np.int64)
    assert sign_flip(differences) == pytest.approx(mcnemar_exact(Paired(same, gain, loss, 0)))


@settings(max_examples=25)
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=9))
def test_with_several_it_is_scipys_exact_permutation_test(differences: list[int]) -> None:
    peer = stats.permutation_test((np.array(differences),), lambda x, axis: np.abs(x.sum(axis=axis)), permutation_type="samples",
                                  vectorized=True, n_resamples=np.inf, alternative="greater")  # fmt: skip
    assert sign_flip(np.array(differences)) == pytest.approx(peer.pvalue)


def test_the_interval_over_seeds_is_students() -> None:
    differences = np.array([0.01, 0.03, 0.02])
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert over_seeds(differences) == pytest.approx((interval.low, interval.high))
    assert all(math.isnan(limit) for limit in over_seeds(np.array([0.01])))


def test_equivalence_over_seed_means() -> None:
    assert equivalence(np.zeros(1000), 0.01) < 0.05 < equivalence(np.zeros(100), 0.01)
    assert equivalence(np.full(1000, 0.2), 0.01) > 0.99
    with pytest.raises(AnalysisError, match="margin between 0 and 1"):
        equivalence(np.zeros(10), 2.0)


def test_holm_by_hand_and_with_a_gap() -> None:
    assert holm(np.array([0.01, 0.04, np.nan, 0.03])) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert np.isnan(holm(np.array([np.nan]))).all() and len(holm(np.array([]))) == 0
