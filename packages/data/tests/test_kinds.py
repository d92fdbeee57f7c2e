"""A kind of task decides sequences and labels; kinds from outside the package work like its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bitrank_data import (
    CLASSIFICATION,
    DATA_KINDS,
    IGNORED,
    INSTRUCTION,
    LANGUAGE_MODELLING,
    Cutting,
    DataError,
    DataKind,
    Example,
    Piece,
    Source,
    Texts,
    evaluation_batches,
    full_batch,
    labels_of_tokens,
    tokenise,
)
from bitrank_data.columns import layout_of
from bitrank_data.examples import PairExample
from bitrank_data.kinds import encode_texts
from bitrank_data.layouts import Naming
from tokenizers import processors

LONG_WORD = 4


def encode_with_lengths(examples: Sequence[Example], tokenizer: Any, cutting: Cutting) -> Any:
    """Words of each text; the label of a word says whether it is long, and the first word has none."""
    encoded = []
    for example in examples:
        words = example.text.split()[: cutting.max_length]
        targets = [IGNORED, *(int(len(word) > LONG_WORD) for word in words[1:])]
        encoded.append([Piece(tokenizer.convert_tokens_to_ids(words), targets)])
    return encoded, 0


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    kind = DataKind("whether a word is long", encode_with_lengths, labels_of_tokens)
    monkeypatch.setitem(DATA_KINDS, "word-length", kind)
    texts = ["the film is lovely", "the story is bad and the cast is superb", "the plot is fine"]
    splits = {}
    for name in ("train", "validation", "test"):
        splits[name] = [Example(f"{name}-{n}", text) for n, text in enumerate(texts)]
    return Source(
        "words", "word-length", lambda: "1", lambda: Texts("word-length", splits, ("short", "long"))
    )


def test_labels_of_tokens_are_padded_and_follow_their_sequence(source: Source, tokenizer: Any) -> None:
    for _ in ("written", "read from the cache"):
        task = tokenise(source, tokenizer, 16)
        split = task.splits["train"].select(np.asarray([2, 0, 1]))
        (batch,) = evaluation_batches(split, task.kind, task.pad_id, batch_tokens=100)
        by_index = dict(zip(batch["index"].tolist(), batch["labels"].tolist(), strict=True))
        assert by_index[0] == [IGNORED, 0, 0, 0, *[IGNORED] * 5]  # the plot is fine
        assert by_index[1] == [IGNORED, 0, 0, 1, *[IGNORED] * 5]  # the film is lovely
        assert by_index[2] == [IGNORED, 1, 0, 0, 0, 0, 0, 0, 1]


def test_a_class_that_labels_no_token_is_refused(source: Source, tokenizer: Any) -> None:
    texts = source.load()
    wrong = replace(source, load=lambda: replace(texts, classes=(*texts.classes, "huge")), name="absent")
    with pytest.raises(DataError, match="the class 'huge' has no text in train"):
        tokenise(wrong, tokenizer, 16)


def test_an_unknown_kind_is_refused_with_the_known_ones(source: Source, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="unknown kind of task 'ranking': expected one of classification"):
        tokenise(replace(source, kind="ranking"), tokenizer, 16)


@pytest.mark.parametrize(
    ("columns", "kind", "used"),
    [
        (["text", "label", "source"], CLASSIFICATION, {"text", "label"}),
        (["text", "source"], LANGUAGE_MODELLING, {"text"}),
        (["idx", "sentence1", "sentence2", "label"], CLASSIFICATION, {"sentence1", "sentence2", "label"}),
        (["text", "text_pair", "label"], CLASSIFICATION, {"text", "text_pair", "label"}),
        (["instruction", "input", "output", "text"], INSTRUCTION, {"instruction", "input", "output"}),
        (["instruction", "context", "response"], INSTRUCTION, {"instruction", "context", "response"}),
        (["prompt", "completion"], INSTRUCTION, {"prompt", "completion"}),
        (["prompt", "prompt_id", "messages"], INSTRUCTION, {"messages"}),
        (["messages", "text"], INSTRUCTION, {"messages"}),
        (["conversations", "system"], INSTRUCTION, {"conversations", "system"}),
    ],
)
def test_a_file_is_of_the_kind_with_the_most_of_its_columns(
    columns: list[str], kind: str, used: set[str]
) -> None:
    found, layout = layout_of(columns, Naming())
    assert (found, set(layout.present(columns).values())) == (kind, used)


def test_columns_of_no_kind_are_refused_with_those_of_every_kind() -> None:
    expected = r"no column 'text'; found prompt\. Expected text \+ label or .*instruction \+ output"
    with pytest.raises(DataError, match=expected):
        layout_of(["prompt"], Naming())


@pytest.fixture
def around_pairs(tokenizer: Any) -> Any:
    """The word tokenizer with one token before, one after and two between the texts of a pair."""
    made = copy.deepcopy(tokenizer)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="the $A is", pair="the $A is is $B is", special_tokens=[("the", 2), ("is", 3)]
    )
    assert made("good", "film")["input_ids"] == [2, *tokenizer("good is is film is")["input_ids"]]
    return made


def test_a_pair_without_text_tokens_has_no_sequence(around_pairs: Any) -> None:
    examples = [PairExample("1", " ", 0, pair=" "), PairExample("2", "good", 0, pair=" ")]
    pieces, cut = encode_texts(examples, around_pairs, Cutting(8, before=(2,), after=(3,)))
    assert [len(of_example) for of_example in pieces] == [0, 1] and cut == 0


@pytest.mark.parametrize("max_length", [3, 4])
def test_a_length_without_room_beside_the_special_tokens_of_pairs_is_refused(
    around_pairs: Any, max_length: int
) -> None:
    pairs = [PairExample("1", "good film", 0, pair="bad plot")]
    cutting = Cutting(max_length, before=(2,), after=(3,))
    expected = (
        f"max_length {max_length} leaves no token for text beside the 4 special tokens of a pair; give 5"
    )
    with pytest.raises(DataError, match=expected):
        encode_texts(pairs, around_pairs, cutting)
    (pieces,), _ = encode_texts(pairs, around_pairs, replace(cutting, max_length=5))
    assert len(pieces[0].tokens) == 5


def test_pairs_are_encoded_together_and_the_longer_text_is_cut_first(tokenizer: Any) -> None:
    short, long = "good film", "the story is bad and the cast is superb"
    examples = [PairExample("1", short, 0, pair="lovely"), PairExample("2", short, 1, pair=long)]
    pieces, cut = DATA_KINDS[CLASSIFICATION].encode(examples, tokenizer, Cutting(6))
    words = [tokenizer.convert_ids_to_tokens(piece.tokens) for (piece,) in pieces]
    assert words == [["good", "film", "lovely"], ["good", "film", "the", "story", "is", "bad"]]
    assert cut == 1


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(CLASSIFICATION, (3,)), (LANGUAGE_MODELLING, (3, 5)), (INSTRUCTION, (3, 5)), ("word-length", (3, 5))],
)
def test_a_full_batch_has_the_shapes_of_its_kind(kind: str, shape: tuple[int, ...], source: Source) -> None:
    batch = full_batch(3, 5, kind)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 5)
    assert batch["attention_mask"].all() and batch["labels"].shape == shape
    assert (batch["labels"] != IGNORED).all()
