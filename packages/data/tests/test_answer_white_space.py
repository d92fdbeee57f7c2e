"""White space around an answer is no part of it, so that tokens of the context contain the whole answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bitrank_data import CONTEXT, END, START, Cutting, DataError, read_question
from bitrank_data.question_answering import encode_questions

CONTEXT_TEXT = " the plot is dull and lovely "


def question_of(answer: str, start: int | None) -> Any:
    answers = {"text": [answer]} if start is None else {"text": [answer], "answer_start": [start]}
    return read_question("q", {"question": "the film is", "context": CONTEXT_TEXT, "answers": answers})


@pytest.mark.parametrize("with_place", [True, False])
@pytest.mark.parametrize(
    ("answer", "start", "stripped"),
    [
        ("lovely ", 22, "lovely"),
        (" lovely", 21, "lovely"),
        (" the plot", 0, "the plot"),
        ("the plot ", 1, "the plot"),
        (" is dull ", 9, "is dull"),
        (CONTEXT_TEXT, 0, CONTEXT_TEXT.strip()),
    ],
)
def test_an_answer_is_marked_without_the_white_space_around_it(
    tokenizer: Any, answer: str, start: int, stripped: str, with_place: bool
) -> None:
    example = question_of(answer, start if with_place else None)
    assert example.answers == (stripped,) and example.starts == (CONTEXT_TEXT.index(stripped),)
    (((piece,),), _) = encode_questions([example], tokenizer, Cutting(32))
    first, last = (int(np.flatnonzero(piece.targets & bit)[0]) for bit in (START, END))
    assert piece.targets[first] & CONTEXT and piece.targets[last] & CONTEXT
    assert CONTEXT_TEXT[piece.spans[first][0] : piece.spans[last][1]] == stripped


def test_the_place_of_an_answer_is_that_of_its_white_space() -> None:
    with pytest.raises(DataError, match="have ' lovely' at answer_start 22, where the context has 'lovely '"):
        question_of(" lovely", 22)
