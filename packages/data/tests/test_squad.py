"""Exact match and F1 agree with values computed by SQuAD's official evaluation script (version 2.0)."""

from __future__ import annotations

import pytest
from bitrank_data.squad import exact_match, normalized, token_f1


def test_normalization_removes_case_punctuation_articles_and_spaces() -> None:
    assert normalized("  The  U.S.A.,\tan  'old'  theatre ") == "usa old theatre"


@pytest.mark.parametrize(
    ("answer", "golds", "em", "f1"),
    [
        ("the Denver Broncos", ["Denver Broncos", "Broncos"], 1, 1.0),
        ("Broncos of Denver", ["Denver Broncos"], 0, 0.8),
        ("Denver", ["Denver Broncos", "the Broncos"], 0, 2 / 3),
        ("no no yes", ["no yes yes"], 0, 2 / 3),
        ("Carolina", ["Denver Broncos"], 0, 0.0),
        ("", ["Denver Broncos"], 0, 0.0),
        ("", [], 1, 1.0),
        ("Denver", [], 0, 0.0),
        ("", ["the"], 1, 1.0),
    ],
)
def test_scores_of_official_examples(answer: str, golds: list[str], em: int, f1: float) -> None:
    assert exact_match(answer, golds) == em
    assert token_f1(answer, golds) == pytest.approx(f1)
