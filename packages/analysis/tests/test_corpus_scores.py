"""Corpus scores from counts equal those of sacrebleu and scikit-learn."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
from bitrank_analysis.corpus_scores import bleu, chrf, macro_f1, matthews, pseudo_values
from bitrank_analysis.metrics import METRICS, further_metrics
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

WORDS = ["the", "film", "cast", "is", "good", "bad", "dull", "a", "plot"]


def texts(seed: int, count: int, change: float) -> tuple[list[str], list[str]]:
    """References, and texts in which a share ``change`` of the words is another one."""
    random_ = random.Random(seed)
    references = [random_.choices(WORDS, k=random_.randint(1, 12)) for _ in range(count)]
    written = [
        [random_.choice(WORDS) if random_.random() < change else word for word in words][
            : random_.randint(1, 14)
        ]
        for words in references
    ]
    return [" ".join(words) for words in written], [" ".join(words) for words in references]


@pytest.mark.parametrize("change", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("count", [1, 4, 50])
def test_bleu_and_chrf_equal_sacrebleu(count: int, change: float) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    for seed in range(5):
        written, references = texts(seed, count, change)
        for metric, score in ((sacrebleu.BLEU(), bleu), (sacrebleu.CHRF(), chrf)):
            counts = np.array(metric._extract_corpus_statistics(written, [references]), dtype=float)
            expected = metric.corpus_score(written, [references]).score
            assert float(score(counts.sum(axis=0))) == pytest.approx(expected, abs=1e-9)


def test_texts_without_words_score_nothing() -> None:
    assert float(bleu(np.array([0.0, 5, 0, 0, 0, 0, 0, 0, 0, 0]))) == 0.0
    assert float(chrf(np.zeros(18))) == 0.0


CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40)


@given(CLASSES)
def test_class_scores_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predictions = np.array(pairs).T
    rows = pd.DataFrame({"id": range(len(pairs)), "label": labels, "prediction": predictions})
    for key, expected in (
        ("macro_f1", metrics.f1_score(labels, predictions, average="macro")),
        ("mcc", metrics.matthews_corrcoef(labels, predictions)),
    ):
        frame = METRICS[key].examples.read(rows, "a run")
        assert frame["value"].mean() == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 100))
def test_pseudo_values_have_the_score_as_their_mean(seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 4, (12, 9)).astype(float)
    for score in (macro_f1, matthews):
        values = pseudo_values(csr_array(counts), score)
        assert values.mean() == pytest.approx(float(score(counts.sum(axis=0))))


def test_pseudo_values_of_a_mean_are_the_values() -> None:
    values = np.random.default_rng(0).normal(size=(7, 1))
    with_ones = np.concatenate([values, np.ones((7, 1))], axis=1)
    found = pseudo_values(csr_array(with_ones), lambda sums: sums[..., 0] / sums[..., 1])
    assert found == pytest.approx(values[:, 0])


def test_scores_of_many_sums_equal_those_of_each() -> None:
    sums = np.random.default_rng(3).integers(0, 9, (5, 4, 18)).astype(float)
    for score, width in ((macro_f1, 18), (matthews, 18), (chrf, 18), (bleu, 10)):
        whole = score(sums[..., :width])
        assert whole.shape == (5, 4)
        assert whole[2, 3] == pytest.approx(float(score(sums[2, 3, :width])))


def test_further_metrics_need_their_columns_and_kind() -> None:
    columns = {"id", "loss", "tokens", "label", "prediction"}
    assert further_metrics("classification", "acc", columns) == ["macro_f1", "mcc"]
    assert further_metrics("sequence-to-sequence", "ppl", columns) == []
    assert further_metrics("sequence-to-sequence", "ppl", {"id", "rouge1", "bleu_counts"}) == [
        "rouge1",
        "bleu",
    ]
