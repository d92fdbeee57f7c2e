"""Extractive question answering: records, windows with the tokens of an answer, and answers from spans.

A question and its context are one pair of texts. If the pair is longer than ``max_length``, the context is
cut into windows that overlap, each with the whole question; all windows have the id of their question. The
target of a token is a sum of bits: :data:`CONTEXT` for tokens of the context, :data:`START` and :data:`END`
for the first and last token of the answer. In a window that does not contain the whole answer both are the
first token, as in BERT (Devlin et al. 2019, section 4.3).

Answers are evaluated per question: the span with the highest score over all windows, as text of the context.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitrank_data.errors import DataError
from bitrank_data.examples import Example
from bitrank_data.fields import FieldError, text_field
from bitrank_data.layouts import Layout, Refused, text_of
from bitrank_data.rows import quoted, shortened
from bitrank_data.sequences import Cutting, Encoded, Piece, Rows, TokenSplit
from bitrank_data.squad import exact_match, token_f1

CONTEXT, START, END = 1, 2, 4
_QUESTION, _CONTEXT, _ANSWERS, _ANSWER_START = "question", "context", "answers", "answer_start"
_OVERLAP = 128  # tokens that two windows share, at most half of a window's context
_LEAST_CONTEXT = 4  # tokens of context that a window must have beside its question


@dataclass(frozen=True)
class QuestionExample(Example):
    """A question about ``context``; ``text`` is both, so that equal pairs are in one split.

    ``answers`` are the texts of all accepted answers, none for a question without an answer, and ``starts``
    are their first characters in the context. Training uses the first one.
    """

    question: str = ""
    context: str = ""
    answers: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


def read_question(id_: str, fields: Mapping[str, Any]) -> QuestionExample:
    """Example ``id_`` from the fields ``question``, ``context``, ``answers`` and optionally ``answer_start``.

    ``answers`` is SQuAD's object of the lists ``text`` and ``answer_start``, a list of texts, or one text;
    empty lists mark a question without an answer. Without ``answer_start`` an answer must occur exactly once
    in the context. Raises :class:`~bitrank_data.fields.FieldError` for an empty text, missing answers, and an
    answer that is not at its place in the context.
    """
    question, context = text_field(fields, _QUESTION), text_field(fields, _CONTEXT)
    answers, starts = _placed_answers(fields, context)
    return _example(id_, None, question, context, answers, starts)


def _example(
    id: str, label: int | None, question: str, context: str, answers: Sequence[str], starts: Sequence[int]
) -> QuestionExample:
    """Example of stored fields."""
    text = f"{question}\n{context}"
    return QuestionExample(id, text, label, question, context, tuple(answers), tuple(starts))


def _fields_of_cells(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the example of a user's row."""
    question, context = text_of(cells, _QUESTION), text_of(cells, _CONTEXT)
    try:
        answers, starts = _placed_answers(cells, context)
    except FieldError as error:
        raise Refused(error.field, error.problem) from error
    return {"question": question, "context": context, "answers": answers, "starts": starts}


def _placed_answers(fields: Mapping[str, Any], context: str) -> tuple[list[str], list[int]]:
    answers, places = _answers(fields)
    starts = [_start(answer, place, context) for answer, place in zip(answers, places, strict=True)]
    # Tokens may not cover white space at the ends of a context, and tokens of bytes begin with that before
    # a word: no such token is of an answer that the white space ends.
    before = [len(answer) - len(answer.lstrip()) for answer in answers]
    stripped = [answer.strip() for answer in answers]
    return stripped, [start + space for start, space in zip(starts, before, strict=True)]


def _answers(fields: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Texts of the answers, and the given first character of each; None where it is not given."""
    given: Any = _parsed(fields.get(_ANSWERS))
    starts: Any = _parsed(fields.get(_ANSWER_START))
    if isinstance(given, Mapping):
        given, starts = given.get("text"), given.get(_ANSWER_START, starts)
    if _is_missing(given):
        remedy = 'for a question without an answer write {"text": [], "answer_start": []}'
        raise FieldError(_ANSWERS, f"are missing; give them, or {remedy}")
    texts = _as_list(given)
    if wrong := [answer for answer in texts if not isinstance(answer, str)]:
        expected = "a text, a list of texts, or an object with the lists text and answer_start"
        raise FieldError(
            _ANSWERS, f"have {quoted(wrong[0])}, of type {type(wrong[0]).__name__}; expected {expected}"
        )
    if any(not answer.strip() for answer in texts):
        remedy = "remove it, and leave the list empty if there is no answer"
        raise FieldError(_ANSWERS, f"have an empty text; {remedy}")
    places = [None] * len(texts) if _is_missing(starts) else _as_list(starts)
    if len(places) != len(texts):
        counts = f"{len(texts)} texts and {len(places)} numbers of answer_start"
        raise FieldError(_ANSWERS, f"have {counts}; give as many")
    return texts, places


def _parsed(value: Any) -> Any:
    """A list or object that a cell of a CSV file has as JSON; other values unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # a text that begins with a bracket


def _is_missing(value: Any) -> bool:
    is_nan = isinstance(value, float) and value != value
    return value is None or is_nan or (isinstance(value, str) and not value.strip())


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def _start(answer: str, place: Any, context: str) -> int:
    """First character of ``answer`` in ``context``: ``place``, or where it occurs if ``place`` is None."""
    if place is None:
        return _only_occurrence(answer, context)
    start = _whole_number(place)
    if start is None:
        problem = f"have answer_start {quoted(place)}; expected the number of a character"
        raise FieldError(_ANSWERS, problem)
    found = context[max(start, 0) : max(start, 0) + len(answer)]
    if start < 0 or found != answer:
        place = shortened(str(start))
        there = f"{quoted(answer)} at answer_start {place}, where the context has {quoted(found)}"
        raise FieldError(_ANSWERS, f"have {there}; characters are counted from 0")
    return start


def _whole_number(value: Any) -> int | None:
    """A number of a JSON, CSV or Parquet file as an int; None for a fraction, infinity, or another value."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value) else None
    if isinstance(value, float | np.floating):
        return int(value) if value.is_integer() else None
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _only_occurrence(answer: str, context: str) -> int:
    count = context.count(answer)
    if not count:
        remedy = "give a part of it, with the same letters, case and spaces"
        raise FieldError(_ANSWERS, f"have {quoted(answer)}, which is not in the context; {remedy}")
    if count > 1:
        remedy = "give answer_start, its first character, counted from 0"
        raise FieldError(_ANSWERS, f"have {quoted(answer)}, which is {count} times in the context; {remedy}")
    return context.index(answer)


def encode_questions(examples: Sequence[Any], tokenizer: Any, cutting: Cutting) -> Encoded:
    """Windows of each :class:`QuestionExample`; none if its question leaves no space for context.

    Raises :class:`DataError` if the tokenizer gives no character offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "question answering needs the character offsets of a fast tokenizer (tokenizer.json); "
            f"{type(tokenizer).__name__} has none: convert it, or give another model"
        )
    return [_windows(example, tokenizer, cutting) for example in examples], 0


def _windows(example: QuestionExample, tokenizer: Any, cutting: Cutting) -> list[Piece]:
    question = tokenizer(example.question, add_special_tokens=False, verbose=False)["input_ids"]
    added = tokenizer.num_special_tokens_to_add(pair=True) if cutting.special_tokens else 0
    space = cutting.max_length - len(question) - added
    if space < _LEAST_CONTEXT:
        return []
    encoded = tokenizer(
        example.question,
        example.context,
        add_special_tokens=cutting.special_tokens,
        truncation="only_second",
        max_length=cutting.max_length,
        stride=min(_OVERLAP, space // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    answer = (example.starts[0], example.starts[0] + len(example.answers[0])) if example.answers else None
    pieces = []
    for number, tokens in enumerate(encoded["input_ids"]):
        is_context_T = np.asarray([part == 1 for part in encoded.sequence_ids(number)])
        types = encoded["token_type_ids"][number] if "token_type_ids" in encoded else ()
        spans_T2 = np.where(is_context_T[:, None], np.asarray(encoded["offset_mapping"][number]), -1)
        if is_context_T.any():
            pieces.append(Piece(tokens, _targets(spans_T2, answer), types, spans_T2))
    return pieces


def _targets(spans_T2: np.ndarray, answer: tuple[int, int] | None) -> np.ndarray:
    """Bits of each token of a window; ``answer`` is the first character and the one after the last."""
    context = np.flatnonzero(spans_T2[:, 0] >= 0)
    targets_T = np.where(spans_T2[:, 0] >= 0, CONTEXT, 0)
    first = last = 0
    if answer is not None:
        begin, end = answer
        inside = context[(spans_T2[context, 1] > begin) & (spans_T2[context, 0] < end)]
        is_whole = spans_T2[context[0], 0] <= begin and end <= spans_T2[context[-1], 1]
        if is_whole and len(inside):
            first, last = int(inside[0]), int(inside[-1])
    targets_T[first] |= START
    targets_T[last] |= END
    return targets_T


def record_of_question(example: Any) -> dict[str, Any]:
    """The texts that evaluation needs of a :class:`QuestionExample`."""
    return {"context": example.context, "answers": list(example.answers)}


def rows_of_questions(split: TokenSplit, rows: Rows) -> Rows:
    """One row per question from the rows of its windows.

    A window's row has ``score``, the sum of the start and end logits of its best span, the tokens ``start``
    and ``end`` of that span, and ``null``, the score of the first token. A question's row has the answer of
    the best window and all accepted answers as texts, ``exact_match`` and ``token_f1`` against them (SQuAD),
    and the sums of ``loss`` and ``tokens`` over its ``windows``. The empty answer wins if its lowest score
    over the windows is higher than the best span's; it is possible only if ``split`` has questions without an
    answer, as in SQuAD 2.0.
    """
    by_question: dict[str, Rows] = {}
    for row in rows:
        by_question.setdefault(split.ids[row["index"]], []).append(row)
    may_be_empty = any(not record["answers"] for record in split.records.values())
    return [_row_of_question(split, id_, windows, may_be_empty) for id_, windows in by_question.items()]


def _row_of_question(split: TokenSplit, id_: str, windows: Rows, may_be_empty: bool) -> dict[str, Any]:
    best, record = max(windows, key=lambda row: row["score"]), split.records[id_]
    is_empty = may_be_empty and min(row["null"] for row in windows) > best["score"]
    answer = "" if is_empty else _text_of(split, best, record["context"])
    return {
        "index": windows[0]["index"],
        "loss": sum(row["loss"] for row in windows),
        "windows": len(windows),
        "tokens": sum(row["tokens"] for row in windows),
        "score": best["score"],
        "prediction_text": answer,
        "reference_text": " | ".join(record["answers"]),
        "exact_match": exact_match(answer, record["answers"]),
        "token_f1": token_f1(answer, record["answers"]),
    }


def _text_of(split: TokenSplit, window: Mapping[str, Any], context: str) -> str:
    spans_T2 = split.spans_of(window["index"])
    return context[spans_T2[window["start"], 0] : spans_T2[window["end"], 1]].strip()


QUESTIONS = (
    Layout(
        {name: name for name in (_QUESTION, _CONTEXT, _ANSWERS)},
        _fields_of_cells,
        _example,
        {_ANSWER_START: _ANSWER_START},
    ),
)
