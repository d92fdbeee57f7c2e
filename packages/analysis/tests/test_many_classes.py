"""Class scores of thousands of classes: memory grows with the examples, not with examples times classes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bitrank_analysis import load_study, open_store
from bitrank_analysis.corpus_scores import Floats, Score, macro_f1, matthews, pseudo_values
from bitrank_analysis.example_values import class_counts
from bitrank_analysis.metrics import METRICS
from bitrank_analysis.statistics.examples import load_arms
from bitrank_analysis.statistics.swaps import CorpusCounts, swapped_differences

MANY = 10_000


def rows(count: int, classes: int, seed: int = 0, right: float = 0.8) -> pd.DataFrame:
    """Predictions of every class once in turn; a share ``right`` of them is the label."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    guesses = generator.integers(0, classes, count)
    predictions = np.where(generator.random(count) < right, labels, guesses)
    return pd.DataFrame({"id": [f"e{n}" for n in range(count)], "label": labels, "prediction": predictions})


def dense_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """One column of 0 and 1 per sum, as the counts are defined."""
    by_id = frame.set_index("id").sort_index()
    columns = {}
    for number in {*frame["label"], *frame["prediction"]}:
        is_label, is_predicted = by_id["label"] == number, by_id["prediction"] == number
        columns[f"label {number}"], columns[f"prediction {number}"] = is_label, is_predicted
        columns[f"right {number}"] = is_label & is_predicted
    return pd.DataFrame(columns).astype(float).reindex(columns=sorted(columns))


def dense_pseudo_values(counts_NK: Floats, score: Score) -> Floats:
    sums_K = counts_NK.sum(axis=0)
    without_N = score(sums_K - counts_NK)
    return np.asarray(score(sums_K) + (len(counts_NK) - 1) * (without_N.mean() - without_N))


@pytest.mark.parametrize("score", [macro_f1, matthews])
def test_sparse_counts_give_the_numbers_of_dense_ones(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = rows(240, 17)
    sparse, dense = class_counts(frame, "a run"), dense_counts(frame)
    assert sparse.names == tuple(dense.columns)
    assert np.array_equal(sparse.values_NK.toarray(), dense.to_numpy())
    expected = dense_pseudo_values(dense.to_numpy(), score)
    assert np.array_equal(pseudo_values(sparse.values_NK, score), expected)
    monkeypatch.setattr("bitrank_analysis.corpus_scores._ENTRIES", 7 * 51)  # seven examples at once
    assert np.array_equal(pseudo_values(sparse.values_NK, score), expected)


def test_exchanges_in_parts_give_the_differences_of_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [tuple(class_counts(rows(20, 3, seed, right), "a run").values_NK for seed in (0, 1))
            for right in (0.9, 0.4)]  # fmt: skip
    whole, _ = swapped_differences(CorpusCounts(arms[0], arms[1], macro_f1))
    monkeypatch.setattr("bitrank_analysis.corpus_scores._ENTRIES", 40_000)
    parts, _ = swapped_differences(CorpusCounts(arms[0], arms[1], macro_f1))
    assert np.array_equal(whole, parts)


def test_counts_of_ten_thousand_classes_have_three_entries_per_example_at_most(
    maker: Any, tmp_path: Path
) -> None:
    for config, right in (("B-FP", 0.8), ("B-Q4", 0.7)):
        columns = rows(MANY, MANY, right=right).to_dict("list")
        maker.run(config, predictions=columns, metrics={"eval/acc": right, "model/mib": 1.0})
    arms = load_arms(load_study(open_store(str(tmp_path))), "movies", "mcc")
    for arm in arms.values():
        (counts_NK,) = arm.counts or ()
        assert counts_NK.shape == (MANY, 3 * MANY) and counts_NK.nnz <= 3 * MANY
        assert arm.values_SN.shape == (1, MANY)


def test_class_scores_of_ten_thousand_classes_equal_scikit_learn_in_little_memory() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    frame = rows(MANY, MANY)
    tracemalloc.start()
    value = METRICS["mcc"].examples.read(frame, "a run")["value"].mean()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MANY * MANY  # bytes; dense counts take 24 times as many
    expected = metrics.matthews_corrcoef(frame["label"], frame["prediction"])
    assert value == pytest.approx(expected, abs=1e-9)
