"""Questions become windows with the tokens of the answer; spans of tokens become answers of questions."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bitrank_data import (
    CONTEXT,
    END,
    QUESTION_ANSWERING,
    START,
    Cutting,
    DataError,
    Source,
    Texts,
    TokenSplit,
    data_kind,
    evaluation_batches,
    full_batch,
    open_task,
    read_question,
    tokenise,
)
from bitrank_data.question_answering import encode_questions
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

FIELDS = {"question": "the film is", "context": "the plot is dull and the film is lovely ."}
LONG = "the film . " * 6 + "good and fine " + "the plot . " * 6


def question_of(**changes: Any) -> Any:
    return read_question("q1", {**FIELDS, **changes})


@pytest.fixture(scope="module")
def with_specials() -> PreTrainedTokenizerFast:
    """A tokenizer that splits words at punctuation and adds [CLS] and [SEP] as BERT's does."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "film", "plot", "is", ".", "good", "and", "fine"]
    words += ["dull", "lovely"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **options)


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["lovely", "is lovely"], "answer_start": [33, 30]},
        {"text": np.array(["lovely", "is lovely"]), "answer_start": np.array([33, 30])},
        {"text": ["lovely", "is lovely"]},
        ["lovely", "is lovely"],
    ],
)
def test_all_forms_of_answers_give_the_same_example(answers: Any) -> None:
    example = question_of(answers=answers)
    assert example.answers == ("lovely", "is lovely") and example.starts == (33, 30)
    assert example.text == f"{example.question}\n{example.context}"


def test_one_text_with_its_place_is_an_answer() -> None:
    assert question_of(answers="the", answer_start=21).starts == (21,)
    assert question_of(answers="the", answer_start="21").starts == (21,)
    assert question_of(answers="the", answer_start=21.0).starts == (21,)
    assert question_of(answers="lovely").starts == (33,)


@pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}])
def test_an_empty_list_marks_a_question_without_an_answer(answers: Any) -> None:
    assert question_of(answers=answers).answers == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": ["awful"]}, "the answers have 'awful', which is not in the context; give a part of it"),
        ({"answers": "the"}, "the answers have 'the', which is 2 times in the context; give answer_start"),
        (
            {"answers": ["lovely"], "answer_start": [3]},
            "the answers have 'lovely' at answer_start 3, where the context has ' plot '",
        ),
        ({"answers": ["the"], "answer_start": [-9]}, "at answer_start -9"),
        *(
            ({"answers": ["the"], "answer_start": [place]}, f"have answer_start {shown}; expected the number")
            for place, shown in (
                ("x", "'x'"),
                (float("inf"), "inf"),
                (float("-inf"), "-inf"),
                (float("nan"), "nan"),
                (0.5, "0.5"),
                (True, "True"),
                ("9" * 5000, "'9{39}…'"),
                ([0], r"\[0\]"),
                ({"start": 0}, "{'start': 0}"),
            )
        ),
        ({"answers": ["the"], "answer_start": [10**400]}, "at answer_start 1000"),
        (
            {"answers": ["the"], "answer_start": [0, 21]},
            "the answers have 1 texts and 2 numbers of answer_start",
        ),
        ({}, "the answers are missing; give them, or for a question without an answer write"),
        ({"answers": None}, "the answers are missing"),
        ({"answers": float("nan")}, "the answers are missing"),
        ({"answers": ""}, "the answers are missing"),
        ({"answers": ["dull", " "]}, "the answers have an empty text"),
        ({"answers": [7]}, "the answers have 7, of type int; expected a text, a list of texts"),
        ({"answers": ["dull"], "context": " "}, "the context is empty"),
        ({"answers": ["dull"], "question": ""}, "the question is empty"),
        ({"answers": ["dull"], "question": None}, "the question is missing"),
        ({"answers": ["dull"], "context": ["dull"]}, "of type list; expected text"),
    ],
)
def test_invalid_fields_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        question_of(**changes)


def marked(tokens: Any, targets: Any, tokenizer: Any) -> tuple[str, str]:
    """Words of the context, and words from the start to the end target."""
    start, end = (int(np.flatnonzero(targets & bit)[0]) for bit in (START, END))
    tokens = np.asarray(tokens)
    return tokenizer.decode(tokens[(targets & CONTEXT) > 0]), tokenizer.decode(tokens[start : end + 1])


def test_a_short_pair_is_one_window_with_the_answer_marked(with_specials: Any) -> None:
    (pieces,), cut = encode_questions([question_of(answers=["lovely ."])], with_specials, Cutting(32))
    (piece,) = pieces
    assert cut == 0
    text = with_specials.decode(piece.tokens)
    assert text == f"[CLS] {FIELDS['question']} [SEP] {FIELDS['context']} [SEP]"
    assert marked(piece.tokens, piece.targets, with_specials) == (FIELDS["context"], "lovely .")
    is_context_T = piece.targets & CONTEXT > 0
    for token, (begin, end) in zip(
        np.asarray(piece.tokens)[is_context_T], piece.spans[is_context_T], strict=True
    ):
        assert with_specials.convert_ids_to_tokens(int(token)) == FIELDS["context"][begin:end]
    assert (piece.spans[~is_context_T] == -1).all()


@pytest.mark.parametrize("specials", [True, False])
def test_windows_overlap_and_mark_the_answer_only_where_it_is_whole(
    with_specials: Any, specials: bool
) -> None:
    example = question_of(context=LONG, answers=["good and fine"])
    cutting = Cutting(14, special_tokens=specials)
    (pieces,), _ = encode_questions([example], with_specials, cutting)
    assert len(pieces) > 2 and max(len(piece.tokens) for piece in pieces) == 14
    seen = set[int]()
    for piece in pieces:
        context, answer = marked(piece.tokens, piece.targets, with_specials)
        first = with_specials.decode(piece.tokens[:1])
        assert answer == ("good and fine" if "good and fine" in context else first)
        seen |= set(piece.spans[piece.spans[:, 0] >= 0, 0].tolist())
    assert seen == {n for n in range(len(LONG)) if LONG[n] != " " and (n == 0 or LONG[n - 1] == " ")}


def test_a_question_without_an_answer_marks_the_first_token(with_specials: Any) -> None:
    ((piece,),), _ = encode_questions([question_of(answers=[])], with_specials, Cutting(32))
    assert piece.targets[0] == START | END and not (piece.targets[1:] & (START | END)).any()


def test_the_context_is_the_second_segment(with_specials: Any) -> None:
    ((piece,),), _ = encode_questions([question_of(answers=["lovely"])], with_specials, Cutting(32))
    assert list(piece.types) == [0] * 5 + [1] * (len(piece.tokens) - 5)


def test_a_pair_without_special_tokens_keeps_question_and_context_apart(tokenizer: Any) -> None:
    ((piece,),), _ = encode_questions([question_of(answers=["lovely"])], tokenizer, Cutting(32))
    assert marked(piece.tokens, piece.targets, tokenizer) == (FIELDS["context"], "lovely")


def source_of(examples: list[Any]) -> Source:
    splits = dict.fromkeys(("train", "validation", "test"), examples)
    fingerprint = repr(examples)
    return Source("asked", QUESTION_ANSWERING, lambda: fingerprint, lambda: Texts(QUESTION_ANSWERING, splits))


def test_questions_that_fill_a_window_are_left_out_and_counted(tokenizer: Any) -> None:
    long = replace(question_of(answers=["lovely"]), id="q2", question="the film " * 8)
    task = tokenise(source_of([question_of(answers=["lovely"]), long]), tokenizer, 16)
    assert set(task.splits["test"].ids) == {"q1"}
    assert task.report.counts["texts_without_tokens"] == 3
    note = "3 questions leave no space for context in max_length and were left out (the first: example q2)"
    assert note in task.report.notes
    with pytest.raises(DataError, match=r"no text left for train \(1 questions leave no space for context"):
        tokenise(source_of([long]), tokenizer, 16)


@pytest.mark.parametrize("files", [["x.jsonl"], ["train-0.jsonl", "train-1.jsonl"]])
def test_the_first_example_that_is_left_out_is_named_by_row_and_file(
    files: list[str], tmp_path: Path, tokenizer: Any
) -> None:
    long = {"question": "the film " * 20}
    folder = tmp_path / "asked"
    folder.mkdir()
    for name in files:
        written(folder / name, rows_of({5: long} if name == files[-1] else {}))
    if len(files) > 1:
        # A file without rows begins with the number at which the next one begins.
        (folder / "train-00.csv").write_text("question,context,answers\n", encoding="utf-8")
        written(folder / "test.jsonl", rows_of({}))
    source = open_task(str(folder if len(files) > 1 else folder / files[0]))
    (note,) = [note for note in tokenise(source, tokenizer, 16).report.notes if "no space for" in note]
    assert note.endswith(f"left out (the first: row 5 of {files[-1]})")


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="needs the character offsets of a fast tokenizer"):
        encode_questions([question_of(answers=["lovely"])], Slow(), Cutting(16))


def test_texts_and_offsets_of_evaluation_splits_come_from_the_cache(tokenizer: Any) -> None:
    for _ in ("written", "read from the cache"):
        task = tokenise(source_of([question_of(answers=["lovely", "is lovely"])]), tokenizer, 32)
        test = task.splits["test"].select(np.asarray([0]))
        assert test.records == {"q1": {"context": FIELDS["context"], "answers": ["lovely", "is lovely"]}}
        assert FIELDS["context"][slice(*test.spans_of(0)[-2])] == "lovely"
        assert task.splits["train"].records == {}


def window(index: int, score: float, start: int, end: int, null: float = -9.0) -> dict[str, Any]:
    numbers = {"index": index, "score": score, "start": start, "end": end, "null": null}
    return {**numbers, "loss": 0.5, "tokens": 10}


@pytest.fixture
def split(tokenizer: Any) -> TokenSplit:
    """One question with two windows or more, and one that has no answer."""
    examples = [
        question_of(context=LONG.strip(), answers=["good and fine", "fine"]),
        replace(question_of(answers=[]), id="none"),
    ]
    return tokenise(source_of(examples), tokenizer, 32).splits["test"]


def test_the_best_span_of_all_windows_is_the_answer(split: TokenSplit) -> None:
    assert split.ids.count("q1") == 2 and split.ids[2] == "none"
    merge = data_kind(QUESTION_ANSWERING).merge
    begin = LONG.index("fine")
    start = int(np.flatnonzero(split.spans_of(1)[:, 0] == begin)[0])
    rows = merge(split, [window(0, 1.0, 3, 4), window(1, 2.0, start, start), window(2, 0.0, 3, 3, null=1.0)])
    first, second = rows
    assert (first["prediction_text"], first["exact_match"], first["token_f1"]) == ("fine", 1, 1.0)
    assert (first["windows"], first["loss"], first["tokens"], first["index"]) == (2, 1.0, 20, 0)
    assert first["reference_text"] == "good and fine | fine"
    assert (second["prediction_text"], second["exact_match"]) == ("", 1)


def test_the_empty_answer_needs_the_highest_score_in_every_window(split: TokenSplit) -> None:
    merge = data_kind(QUESTION_ANSWERING).merge
    rows = merge(split, [window(0, 1.0, 3, 3, null=3.0), window(1, 2.0, 3, 3, null=1.5)])
    assert rows[0]["prediction_text"] != ""
    rows = merge(split, [window(0, 1.0, 3, 3, null=3.0), window(1, 2.0, 3, 3, null=2.5)])
    assert rows[0]["prediction_text"] == "" and rows[0]["token_f1"] == 0.0
    answered = replace(split, records={"q1": split.records["q1"]})
    rows = merge(answered, [window(0, 1.0, 3, 3, null=3.0), window(1, 2.0, 3, 3, null=2.5)])
    assert rows[0]["prediction_text"] != ""


def test_batches_have_the_bits_of_each_token(split: TokenSplit) -> None:
    (batch,) = evaluation_batches(split, QUESTION_ANSWERING, 0, batch_tokens=1000)
    for row, index in enumerate(batch["index"]):
        targets = split.targets_of(int(index))
        assert batch["labels"][row, : len(targets)].tolist() == targets.tolist()
        assert (batch["labels"][row, len(targets) :] < 0).all()
    assert full_batch(2, 5, QUESTION_ANSWERING)["labels"].shape == (2, 5)


def test_the_toy_task_has_questions_of_several_windows(tokenizer: Any) -> None:
    task = tokenise(open_task("toy_questions"), tokenizer, 32)
    test = task.splits["test"]
    assert len(set(test.ids)) == 32 < len(test)
    assert {text for record in test.records.values() for text in record["answers"]} > {"good", "bad"}


def rows_of(changes: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Twelve rows of a file; ``changes`` are fields of single rows, numbered from 1."""
    rows = []
    for number in range(1, 13):
        context = f"scene {number} of the film is lovely"
        row = {"title": "x", "question": "what is lovely", "context": context, "answers": ["the film"]}
        rows.append({**row, **changes.get(number, {})})
    return rows


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows({**row, "answers": json.dumps(row["answers"])} for row in rows)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "answers", [["the film"], {"text": ["the film", "film"], "answer_start": [11, 15]}], ids=["list", "squad"]
)
def test_a_file_of_questions_becomes_a_task(
    suffix: str, answers: Any, tmp_path: Path, tokenizer: Any
) -> None:
    rows = []
    for number in range(10):
        context = f"of scene {number} the film is lovely"
        rows.append({"question": "what is lovely", "context": context, "answers": answers})
    source = open_task(written(tmp_path / f"asked{suffix}", rows))
    assert source.kind == QUESTION_ANSWERING
    texts = source.load()
    (example,) = texts.splits["test"]
    assert example.answers[0] == "the film" and example.starts[0] == 11
    task = tokenise(source, tokenizer, 16)
    assert list(task.splits["test"].records) == [example.id]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {3: {"answers": ["the plot"]}},
            "the answers of row 3 .line 3. have 'the plot', which is not in the context",
        ),
        ({4: {"answers": None}}, "the answers of row 4 .line 4. are missing"),
        ({5: {"context": 5}}, "the context of row 5 .line 5. is 5, of type int"),
    ],
)
def test_an_invalid_row_is_refused_with_its_number(changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_task(written(tmp_path / "asked.jsonl", rows_of(changes)))


def test_rows_without_a_question_or_context_are_counted_with_the_first(tmp_path: Path) -> None:
    path = written(tmp_path / "asked.jsonl", rows_of({2: {"context": " "}, 6: {"question": ""}}))
    notes = open_task(path).load().report.notes
    assert "1 of 12 rows have no context and were left out (the first: row 2 (line 2))" in notes
    assert "1 of 12 rows have no question and were left out (the first: row 6 (line 6))" in notes
