"""Scores of generated texts: known values, one number per text, and a clear error without a library."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
from bitrank.errors import UserError
from bitrank.run import text_scores
from bitrank.run.text_scores import TEXT_SCORES, check_scores, score_texts
from bitrank.spec.task_kinds import TASK_KINDS

TEXTS = ["the cat sat on the mat", "a dog", ""]
REFERENCES = ["the cat is on the mat", "a dog", "a bird"]


def test_answers_are_compared_as_in_squad() -> None:
    found = score_texts(["answers"], ["The cat.", "cat cat dog"], ["cat", "cat dog dog"])
    assert found.columns["exact_match"] == [1.0, 0.0]
    assert found.columns["token_f1"] == pytest.approx([1.0, 2 / 3])
    assert found.figures["token_f1"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("name", TEXT_SCORES)
def test_a_score_has_a_number_for_each_text_and_a_figure(name: str) -> None:
    library = TEXT_SCORES[name].library
    if library:
        pytest.importorskip(library)
    found = TEXT_SCORES[name].score(TEXTS, REFERENCES)
    assert found.figures and all(len(values) == len(TEXTS) for values in found.columns.values())


def test_rouge_is_the_f_measure_of_common_words() -> None:
    pytest.importorskip("rouge_score")
    found = score_texts(["rouge"], TEXTS, REFERENCES)
    assert found.columns["rouge1"] == pytest.approx([5 / 6, 1.0, 0.0])
    assert found.columns["rouge2"] == pytest.approx([3 / 5, 1.0, 0.0])
    assert found.columns["rougeL"] == pytest.approx([5 / 6, 1.0, 0.0])
    assert found.figures["rouge1"] == pytest.approx((5 / 6 + 1) / 3)


def test_bleu_and_chrf_are_those_of_the_library_and_follow_from_the_counts() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    from bitrank_analysis.metrics import METRICS

    found = score_texts(["bleu", "chrf"], TEXTS, REFERENCES)
    assert found.figures["bleu"] == pytest.approx(sacrebleu.corpus_bleu(TEXTS, [REFERENCES]).score)
    assert found.figures["chrf"] == pytest.approx(sacrebleu.corpus_chrf(TEXTS, [REFERENCES]).score)
    for name, value in found.figures.items():
        score, counts = METRICS[name].examples.score, found.columns[f"{name}_counts"]
        assert score is not None
        assert float(score(sum_of(counts))) == pytest.approx(value)


def sum_of(counts: list[list[int]]) -> Any:
    import numpy as np

    return np.array(counts, dtype=float).sum(axis=0)


def test_columns_of_every_score_have_a_metric_with_a_paired_test() -> None:
    from bitrank_analysis.metrics import METRICS
    from bitrank_analysis.statistics.paired import PAIRED_TESTS

    for entry in TEXT_SCORES.values():
        if entry.library and find_spec(entry.library) is None:
            pytest.skip(f"{entry.library} is not installed")
        for figure in entry.score(TEXTS, REFERENCES).figures:
            assert METRICS[figure].test in PAIRED_TESTS


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_scores, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs sacrebleu, .*pip install 'bitrank\[text\]'"):
        check_scores(["answers", "bleu"])
    check_scores(["answers"])


def test_an_unknown_score_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match="score of texts"):
        check_scores(["meteor"])


@pytest.mark.parametrize("name", [n for n, kind in TASK_KINDS.items() if kind.generation])
def test_kinds_that_generate_name_scores_that_exist(name: str) -> None:
    generation = TASK_KINDS[name].generation
    assert generation is not None and set(generation.scores) <= set(TEXT_SCORES)
