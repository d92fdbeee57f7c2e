"""Names of the speakers of a conversation, in ``role`` and in ``from``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bitrank_data import open_task


@pytest.mark.parametrize(("name", "text"), [("role", "content"), ("from", "value")])
@pytest.mark.parametrize(
    ("asking", "answering"),
    [
        ("user", "assistant"),
        ("human", "gpt"),
        ("User", "Assistant"),
        ("HUMAN", "ChatGPT"),
        ("user", "model"),
        ("user", "bot"),
    ],
)
def test_known_names_mean_user_and_assistant_in_any_case(
    name: str, text: str, asking: str, answering: str, tmp_path: Path
) -> None:
    path = tmp_path / "chat.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(12):
            turns = [("System", "be brief"), (asking, f"q {n}"), (answering, f"a {n}")]
            rows = [{name: speaker, text: content} for speaker, content in turns]
            file.write(json.dumps({"messages": rows}) + "\n")
    texts = open_task(str(path)).load()
    roles = {tuple(turn.role for turn in example.turns) for example in texts.splits["train"]}
    assert roles == {("system", "user", "assistant")}
    assert texts.report.counts["rows_without_text"] == 0


def test_a_role_with_another_name_stays_for_the_template(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    turns = [("User", "q"), ("Tool", "found"), ("assistant", "a")]
    row = {"messages": [{"role": speaker, "content": content} for speaker, content in turns]}
    path.write_text(
        (json.dumps(row) + "\n") * 5
        + "".join(
            json.dumps(
                {"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "a"}]}
            )
            + "\n"
            for n in range(12)
        )
    )
    texts = open_task(str(path)).load()
    examples = [example for split in texts.splits.values() for example in split]
    assert {example.turns[1].role for example in examples if len(example.turns) == 3} == {"Tool"}
