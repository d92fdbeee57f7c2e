"""Approximate randomization of corpus scores: exact on small cases, and calibrated."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitrank_analysis import AnalysisError, load_study, open_store
from bitrank_analysis.corpus_scores import Score, macro_f1, matthews
from bitrank_analysis.statistics import compare
from bitrank_analysis.statistics.confidence import SeedError, of_swaps
from bitrank_analysis.statistics.paired import PAIRED_TESTS, ComparisonSettings, Pair
from bitrank_analysis.statistics.swaps import CorpusCounts
from scipy.sparse import csr_array

CLASSES = 3


def counts_of(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Counts (N, 3 C) of :func:`macro_f1`."""
    label_NC, prediction_NC = (np.eye(CLASSES)[numbers] for numbers in (labels, predictions))
    return np.concatenate([label_NC, prediction_NC, label_NC * prediction_NC], axis=1)


def corpus(ours_SNK: np.ndarray, theirs_SNK: np.ndarray, score: Score) -> CorpusCounts:
    """Counts of two arms from dense ones."""
    ours, theirs = (tuple(csr_array(dense_NK) for dense_NK in side) for side in (ours_SNK, theirs_SNK))
    return CorpusCounts(ours, theirs, score)


def dense(counts: tuple[csr_array, ...]) -> np.ndarray:
    return np.stack([counts_NK.toarray() for counts_NK in counts])


def arms(seed: int, count: int, right: tuple[float, float], seeds: int = 1) -> CorpusCounts:
    """Two arms that are right with these probabilities, on the same labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    found = []
    for share in right:
        guesses = generator.integers(0, CLASSES, (seeds, count))
        is_right = generator.random((seeds, count)) < share
        found.append(np.stack([counts_of(labels, row) for row in np.where(is_right, labels, guesses)]))
    return corpus(found[0], found[1], macro_f1)


@pytest.mark.parametrize("seeds", [1, 3])
def test_p_value_equals_the_enumeration_of_all_exchanges(seeds: int) -> None:
    for number in range(5):
        counts = arms(number, 8, (0.9, 0.3), seeds)
        observed, as_large, exchanges = float(counts.difference()), 0, 0
        candidate_SNK, baseline_SNK = dense(counts.candidate), dense(counts.baseline)
        for mask in itertools.product((False, True), repeat=8):
            swap = np.array(mask)[None, :, None]
            ours = np.where(swap, baseline_SNK, candidate_SNK)
            theirs = np.where(swap, candidate_SNK, baseline_SNK)
            difference = float(corpus(ours, theirs, macro_f1).difference())
            as_large += abs(difference) >= abs(observed) - 1e-12
            exchanges += 1
        assert of_swaps(counts).p == pytest.approx(min(1.0, as_large / exchanges))


def test_random_exchanges_approximate_the_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitrank_analysis.statistics import signflips

    counts = arms(1, 12, (0.8, 0.4))
    exact = of_swaps(counts)
    monkeypatch.setattr(signflips, "_ALL", 4)
    random = of_swaps(counts)
    assert random.p == pytest.approx(exact.p, abs=0.015)
    assert random.interval() == pytest.approx(exact.interval(), abs=0.03)
    assert np.array_equal(of_swaps(counts).points_B, random.points_B)


@pytest.mark.parametrize("count", [8, 200])
def test_identical_arms_have_p_1_and_no_difference(count: int) -> None:
    one = arms(0, count, (0.7, 0.7)).candidate
    found = of_swaps(CorpusCounts(one, one, matthews))
    assert found.p == 1.0 and found.value == 0.0


def test_exchanged_arms_have_the_same_p_and_the_opposite_interval() -> None:
    counts = arms(4, 60, (0.8, 0.6))
    turned = CorpusCounts(counts.baseline, counts.candidate, counts.score)
    ours, theirs = of_swaps(counts), of_swaps(turned)
    assert ours.p == pytest.approx(theirs.p, abs=0.01) and ours.value == -theirs.value
    low, high = ours.interval()
    assert theirs.interval() == pytest.approx((-high, -low), abs=0.01)


def test_an_interval_without_zero_is_a_small_p() -> None:
    for number in range(10):
        found = of_swaps(arms(number, 80, (0.75, 0.6)))
        low, high = found.interval(0.05)
        assert (found.p < 0.05) == (low > 0 or high < 0)
        assert low <= found.value <= high


def test_seeds_widen_the_interval() -> None:
    counts = arms(2, 80, (0.8, 0.6), seeds=3)
    low, high = of_swaps(counts).interval()
    wide_low, wide_high = of_swaps(counts, SeedError(0.1, 4.0)).interval()
    assert wide_low < low < high < wide_high


def test_a_corpus_test_without_counts_is_an_error() -> None:
    pair = Pair(np.ones((1, 4)), np.ones((1, 4)), np.ones(4), None)
    with pytest.raises(AnalysisError, match="needs the counts of each example"):
        PAIRED_TESTS["corpus"].row(pair, ComparisonSettings(0.05, 0.01, 1))


def test_runs_are_compared_on_a_further_metric(maker: Any) -> None:
    right = {"B-FP": [i % 5 != 0 for i in range(60)], "B-Q4": [i % 2 == 0 for i in range(60)]}
    for config, answers in right.items():
        maker.classifier(config, answers)
    study = load_study(open_store(str(maker.folder)))
    (row,) = compare(study, "movies", ["B-FP"], metric="macro_f1").to_dict("records")
    labels = np.array([i % 2 for i in range(60)])
    for name, column in (("B-Q4", "candidate_quality"), ("B-FP", "baseline_quality")):
        predictions = np.where(right[name], labels, 1 - labels)
        two = counts_of(labels, predictions)
        assert row[column] == pytest.approx(float(macro_f1(two.sum(axis=0))))
    assert row["metric"] == "macro_f1" and row["test"] == "exchanged examples"
    assert row["difference"] == pytest.approx(row["candidate_quality"] - row["baseline_quality"])
    assert row["low"] < row["difference"] < row["high"] < 0 and row["p"] < 0.01


def test_an_arm_may_predict_classes_that_another_never_does(
    new_maker: Callable[[Path], Any], tmp_path: Path
) -> None:
    maker = new_maker(tmp_path)
    labels = [i % 3 for i in range(30)]
    for config, predictions in (("B-FP", labels), ("B-Q4", [0] * 30)):
        rows = {"id": [f"e{i}" for i in range(30)], "label": labels, "prediction": predictions}
        maker.run(config, predictions=rows, metrics={"eval/acc": 0.5, "model/mib": 1.0})
    study = load_study(open_store(str(tmp_path)))
    (row,) = compare(study, "movies", ["B-FP"], metric="mcc").to_dict("records")
    assert (row["candidate_quality"], row["baseline_quality"]) == pytest.approx((0.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("score", [macro_f1, matthews])
def test_false_positives_are_as_frequent_as_alpha(score: Any) -> None:
    """1,000 pairs of equal arms: 95 % of such counts are within 36 and 64 of 50."""
    rejected = 0
    for number in range(1000):
        found = arms(number, 40, (0.6, 0.6))
        rejected += of_swaps(CorpusCounts(found.candidate, found.baseline, score)).p < 0.05
    assert 30 <= rejected <= 70
