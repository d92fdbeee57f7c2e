"""Keys of turns beside role and content: calls and weights are refused, others are counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bitrank_data import DataError, open_task

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def conversation(number: int = 0, **keys: Any) -> list[dict[str, Any]]:
    """A question and its answer, whose turn has ``keys``."""
    question = {"role": "user", "content": f"why {number}"}
    return [question, {"role": "assistant", "content": "Let me look.", **keys}]


def shared(number: int = 0, **keys: Any) -> list[dict[str, Any]]:
    """The same in the layout of ShareGPT."""
    question = {"from": "human", "value": f"why {number}"}
    return [question, {"from": "gpt", "value": "Let me look.", **keys}]


def written(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def notes_of(path: Path, rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return open_task(written(path, rows)).load().report.notes


@pytest.mark.parametrize("keys", [{"tool_calls": [CALL]}, {"function_call": {"name": "weather"}}])
@pytest.mark.parametrize("form", ["messages", "text", "conversations", "completion"])
def test_a_call_beside_a_text_is_refused_with_its_row(
    tmp_path: Path, keys: dict[str, Any], form: str
) -> None:
    rows: list[dict[str, Any]] = [{"messages": conversation(n)} for n in range(12)]
    bad: dict[str, Any] = {"messages": conversation(**keys)}
    turn, column = 2, "messages"
    if form == "text":
        bad = {"messages": json.dumps(conversation(**keys))}
    elif form == "conversations":
        rows, bad = [{"conversations": shared(n)} for n in range(12)], {"conversations": shared(**keys)}
    elif form == "completion":
        rows = [{"prompt": conversation(n)[:1], "completion": conversation(n)[1:]} for n in range(12)]
        bad, turn, column = {**rows[0], "completion": conversation(**keys)[1:]}, 1, "completion"
    message = rf"the {column} of row 13 \(line 13\) has {next(iter(keys))} in turn {turn}; images, tool calls"
    with pytest.raises(DataError, match=message):
        open_task(written(tmp_path / "x.jsonl", [*rows, bad]))


@pytest.mark.parametrize("weight", [0, 0.0, False, 0.5, "0"])
@pytest.mark.parametrize("form", [conversation, shared])
def test_an_answer_of_another_weight_than_one_is_refused_with_its_row(
    tmp_path: Path, weight: Any, form: Any
) -> None:
    rows = [{"messages": form(n)} for n in range(12)] + [{"messages": form(weight=weight)}]
    with pytest.raises(
        DataError, match=r"row 13 .* has the weight .* in turn 2, but every answer is learned"
    ):
        open_task(written(tmp_path / "x.jsonl", rows))


def test_keys_without_an_effect_on_learning_are_accepted_in_silence(tmp_path: Path) -> None:
    rows = [{"messages": conversation(n, weight=1, tool_calls=[], function_call=None)} for n in range(12)]
    for row in rows:  # a question is never learned
        row["messages"][0] |= {"weight": 0, "name": "ann", "tool_calls": None}
    assert notes_of(tmp_path / "x.jsonl", rows) == ()


def test_other_keys_of_turns_are_counted_by_row(tmp_path: Path) -> None:
    rows = [{"messages": conversation(n)} for n in range(12)]
    rows[0] = {"messages": conversation(0, reasoning_content="so", train=False)}
    rows[1] = {"messages": [*conversation(1, reasoning_content="so"), *conversation(1, reasoning_content="")]}
    rows[2] = {"messages": [*conversation(2, reasoning_content=None), {"role": "user", "content": "and"}]}
    assert notes_of(tmp_path / "x.jsonl", rows) == (
        "2 of 12 rows have turns with 'reasoning_content', which is not used",
        "1 of 12 rows have turns with 'train', which is not used",
        "1 of 12 rows end with turns without an answer, which are not used",
    )


def test_keys_of_turns_that_are_data_give_few_notes(tmp_path: Path) -> None:
    rows = [{"messages": conversation(n, **{f"id-{n}": n + 1})} for n in range(40)]
    assert len(notes_of(tmp_path / "x.jsonl", rows)) == 10
