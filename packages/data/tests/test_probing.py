"""Facts become prompts whose last target is the object; objects without a token of their own are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bitrank_data import (
    IGNORED,
    MASKED_PROBING,
    PROBING,
    Cutting,
    DataError,
    Source,
    Texts,
    evaluation_batches,
    full_batch,
    open_task,
    read_fact,
    tokenise,
)
from bitrank_data.probing import encode_facts, encode_masked_facts
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast


def fact(id_: str, prompt: str, object_: Any) -> Any:
    return read_fact(id_, {"prompt": prompt, "object": object_})


def source_of(*facts: Any) -> Source:
    splits = {split: list(facts) for split in ("train", "validation", "test")}
    return Source("facts", PROBING, lambda: repr(facts), lambda: Texts(PROBING, splits))


def test_the_object_is_the_label_of_the_last_token_of_the_prompt(tokenizer: Any) -> None:
    task = tokenise(source_of(fact("a", "the film is ", "good"), fact("b", "the plot", "dull")), tokenizer, 8)
    (batch,) = evaluation_batches(task.splits["test"], PROBING, task.pad_id, batch_tokens=100)
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["the film is", "the plot"]
    assert tokenizer.convert_ids_to_tokens(batch["labels"].tolist()) == ["good", "dull"]


def test_a_long_prompt_keeps_its_end_after_the_tokens_before_a_text(tokenizer: Any) -> None:
    cutting = Cutting(4, before=(9,))
    ((piece,),), cut = encode_facts([fact("a", "the film and the plot is", "dull")], tokenizer, cutting)
    assert cut == 1 and piece.tokens[0] == 9
    assert tokenizer.decode(piece.tokens[1:]) == "the plot is"
    dull = tokenizer.convert_tokens_to_ids("dull")
    assert list(piece.targets) == [IGNORED] * 3 + [dull]


def test_objects_without_one_known_token_are_left_out_and_counted(tokenizer: Any) -> None:
    facts = [
        fact("a", "the film is", "good"),
        fact("b", "the film is", "very good"),
        fact("c", "the plot is", 1989),
    ]
    task = tokenise(source_of(*facts), tokenizer, 8)
    assert task.splits["train"].ids == ["a"] and task.report.counts["texts_without_tokens"] == 6
    note = (
        "6 objects are not exactly one known token of the tokenizer and were left out (the first: example b)"
    )
    assert note in task.report.notes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "the film is"}, "the object is missing"),
        ({"prompt": "the film is", "object": " "}, "the object is empty"),
        ({"prompt": "", "object": "good"}, "the prompt is empty"),
        (
            {"prompt": "the film is", "object": ["good"]},
            "the object is .'good'., of type list; expected text",
        ),
        ({"prompt": "the film is", "object": True}, "of type bool; expected text"),
    ],
)
def test_invalid_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_fact("a", fields)


def test_a_full_batch_has_one_label_per_sequence() -> None:
    assert full_batch(3, 5, PROBING)["labels"].shape == (3,)


def test_a_file_of_facts_becomes_a_task_and_rows_without_an_object_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    lines = [f"scene {number} is,good,r" for number in range(12)]
    path.write_text("\n".join(["prompt,object,relation", *lines, "the film is,,r"]), encoding="utf-8")
    source = open_task(str(path))
    assert source.kind == PROBING
    texts = source.load()
    assert texts.splits["test"][0].object == "good"
    note = "1 of 13 rows have no object and were left out (the first: row 13 (line 14))"
    assert note in texts.report.notes


def with_mask() -> PreTrainedTokenizerFast:
    names = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ".",
        "the",
        "film",
        "plot",
        "and",
        "is",
        "good",
        "dull",
    ]
    model = Tokenizer(WordLevel({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=model, **roles)


def test_a_mask_and_a_full_stop_follow_the_prompt_and_the_mask_has_the_object_as_label() -> None:
    tokenizer = with_mask()
    facts = [fact("a", "the film is ", "good"), fact("b", "the film is", "very good")]
    cutting = Cutting(9, before=(2,), after=(3,))
    (((piece,), none), cut) = encode_masked_facts(facts, tokenizer, cutting)
    assert none == [] and cut == 0
    words = tokenizer.convert_ids_to_tokens(list(piece.tokens))
    assert words == ["[CLS]", "the", "film", "is", "[MASK]", ".", "[SEP]"]
    good = tokenizer.convert_tokens_to_ids("good")
    assert list(piece.targets) == [IGNORED] * 4 + [good] + [IGNORED] * 2


def test_a_long_masked_prompt_keeps_its_end_and_its_mask() -> None:
    tokenizer = with_mask()
    cutting = Cutting(5, before=(2,), after=(3,))
    ((piece,),), cut = encode_masked_facts(
        [fact("a", "the film and the plot is", "dull")], tokenizer, cutting
    )
    assert cut == 1 and tokenizer.convert_ids_to_tokens(list(piece.tokens)) == [
        "[CLS]", "is", "[MASK]", ".", "[SEP]",
    ]  # fmt: skip
    with pytest.raises(DataError, match="max_length 4 leaves no token for a prompt beside the mask; give 5"):
        encode_masked_facts([fact("a", "the plot is", "dull")], tokenizer, Cutting(4, (), (2,), (3,)))


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="the tokenizer has no mask token"):
        encode_masked_facts([fact("a", "the film is", "good")], tokenizer, Cutting(8))


def test_a_full_masked_batch_has_one_target_per_sequence() -> None:
    labels_BT = full_batch(3, 5, MASKED_PROBING)["labels"]
    assert labels_BT.shape == (3, 5) and ((labels_BT != IGNORED).sum(1) == 1).all()
