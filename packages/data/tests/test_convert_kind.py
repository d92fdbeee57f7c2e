"""A task as another kind that its examples fit: the same splits, and the examples of that kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank_data import (
    INSTRUCTION,
    MASKED_PROBING,
    QUESTION_ANSWERING,
    SEQUENCE_TO_SEQUENCE,
    DataError,
    Dialogue,
    TargetExample,
    open_task,
)


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


PAIRS = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)]


def test_prompts_and_completions_are_sources_and_targets_of_an_encoder_decoder(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", PAIRS)
    usual, chosen = open_task(path), open_task(path, kind=SEQUENCE_TO_SEQUENCE)
    assert (usual.kind, chosen.kind) == (INSTRUCTION, SEQUENCE_TO_SEQUENCE)
    assert usual.fingerprint() != chosen.fingerprint()
    for split, examples in usual.load().splits.items():
        found = chosen.load().splits[split]
        assert [example.id for example in found] == [example.id for example in examples]
        for example in found[:2]:
            assert isinstance(example, TargetExample)
            assert example.target == example.text.replace("question", "answer")


def test_the_input_of_an_instruction_is_part_of_the_source(tmp_path: Path) -> None:
    rows = [{"instruction": "Name it.", "input": f"film {n}", "output": f"{n}"} for n in range(40)]
    source = open_task(written(tmp_path / "x.jsonl", rows), kind=SEQUENCE_TO_SEQUENCE)
    example = source.load().splits["test"][0]
    assert example.text.startswith("Name it.\n\nfilm ")


def test_a_conversation_of_several_answers_has_no_single_target(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    rows = [{"messages": [{**turns[0], "content": str(n)}, *turns[1:]]} for n in range(40)]
    source = open_task(written(tmp_path / "x.jsonl", rows), kind=SEQUENCE_TO_SEQUENCE)
    with pytest.raises(
        DataError, match=r"row \d+ of x.jsonl has the turns user, assistant, user, assistant: an encoder-"
    ):
        source.load().splits["test"][0]


def test_sources_and_targets_are_instructions_of_a_decoder() -> None:
    example = open_task("toy_summaries", kind=INSTRUCTION).load().splits["test"][0]
    original = open_task("toy_summaries").load().splits["test"][0]
    assert isinstance(example, Dialogue) and isinstance(original, TargetExample)
    assert [turn.content for turn in example.turns] == [original.text, original.target]


def test_facts_are_sentences_with_a_mask_for_an_encoder() -> None:
    chosen = open_task("toy_facts", kind=MASKED_PROBING)
    assert chosen.kind == chosen.load().kind == MASKED_PROBING
    assert list(chosen.load().splits["test"]) == list(open_task("toy_facts").load().splits["test"])


def test_kinds_that_the_examples_do_not_fit_are_refused_with_those_that_they_fit(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", PAIRS)
    fitting = "instruction-following or sequence-to-sequence"
    message = f"x has examples for {fitting}, not for question-answering; give --kind {fitting}"
    with pytest.raises(DataError, match=message):
        open_task(path, kind=QUESTION_ANSWERING)
    with pytest.raises(DataError, match="unknown kind of task 'chat': expected one of classification"):
        open_task(path, kind="chat")
