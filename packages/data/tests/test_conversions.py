"""Rows made of the members of real archives, on small archives of the same layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitrank_data.conversions import bigbench, brown, chitchat
from bitrank_data.tables import Tables, read_table

ROOT = "bigbench-1.0.0/bigbench/benchmark_tasks"


def task(*examples: dict[str, Any], prefix: str = "") -> bytes:
    return json.dumps({"name": "n", "task_prefix": prefix, "examples": examples}).encode()


def test_targets_are_a_text_a_list_or_the_best_scores() -> None:
    content = task(
        {"input": "a", "target": "one"},
        {"input": "b", "target": ["one", "two"]},
        {"input": "c", "target_scores": {"no": 0, "yes": 1, "maybe": 1}},
    )
    rows = bigbench.rows_of_task(f"{ROOT}/some/part/task.json", content)
    assert [(row["part"], row["number"], row["input"]) for row in rows] == [
        ("some/part", 0, "a"),
        ("some/part", 1, "b"),
        ("some/part", 2, "c"),
    ]
    assert [row["targets"] for row in rows] == [["one"], ["one", "two"], ["yes", "maybe"]]
    assert [row["choices"] for row in rows] == [[], [], ["no", "yes", "maybe"]]


def test_some_rows_of_a_task_do_not_depend_on_their_order() -> None:
    examples = [{"input": f"input {number}", "target": "x"} for number in range(1000)]
    found = []
    for order in (examples, examples[::-1]):
        rows = bigbench.some_rows_of_task(f"{ROOT}/natural_instructions/a/task.json", task(*order))
        found.append([row["input"] for row in rows])
    assert found[0] == found[1]
    assert len(set(found[0])) == 400


def test_members_of_the_collection_become_one_file_per_task(
    tmp_path: Path, tar_of: Callable[..., bytes]
) -> None:
    parts = {
        "multiemo.parquet": ["multiemo/all_sentence_en"],
        "vitaminc.parquet": ["vitaminc_fact_verification"],
        "disfl_qa.parquet": ["disfl_qa"],
        "qa_wikidata.parquet": ["qa_wikidata"],
        "topical_chat.parquet": ["topical_chat"],
        "xsum.parquet": ["gem/xsum"],
        "wikilingua.parquet": ["gem/wikilingua_en"],
        "natural_instructions.parquet": ["natural_instructions/a", "natural_instructions/b"],
    }
    assert parts.keys() == bigbench.TABLES.keys()
    files = {
        f"{ROOT}/{part}/task.json": task({"input": part, "target": "x"})
        for some in parts.values()
        for part in some
    }
    others = ("multiemo/all_sentence_de", "disfl_qa/deeper", "social_iqa")
    files |= {f"{ROOT}/{part}/task.json": task({"input": part, "target": "x"}) for part in others}
    tar_of(files, tmp_path / "bigbench.tar.gz")
    Tables(bigbench.TABLES).extract([tmp_path / "bigbench.tar.gz"], tmp_path)
    found = {name: [row["input"] for row in read_table(tmp_path / name)] for name in parts}
    assert found == parts


def test_brown_text_has_no_tags_and_english_spaces() -> None:
    words = "``/`` It/pps is/bez 1/2/cd of/in $/nn 3/cd ''/'' ,/, said/vbd Jim's/np$ (/( a/at )/) ./."
    content = f"{words}\n\n\nEnd/nn ?/.\n".encode()
    (row,) = brown.rows_of_file("package/ca01", content)
    assert row == {"name": "ca01", "text": "“It is 1/2 of $3”, said Jim's (a).\nEnd?"}


def test_messages_of_one_sender_in_a_row_are_one_turn() -> None:
    def message(sender: str, text: str) -> dict[str, str]:
        return {"sender": sender, "text": text, "timestamp": "2018"}

    turns = [
        [message("x", "Hi"), message("x", " there\n ")],
        [message("y", "Yo"), message("y", " ")],
        [message("x", "?")],
    ]
    content = json.dumps({"id-1": {"prompt": "p", "messages": turns}, "id-2": {"messages": []}})
    rows = chitchat.rows_of_dataset("chitchat_dataset/dataset.json", content.encode())
    assert rows == [
        {"name": "id-1", "prompt": "p", "speakers": ["1", "2", "1"], "turns": ["Hi\nthere", "Yo", "?"]},
        {"name": "id-2", "prompt": "", "speakers": [], "turns": []},
    ]
