"""Texts of the embedded assets as tasks and records, on small files of the same layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bitrank_data import ASSETS, EMBEDDED
from bitrank_data.assets import asset_dir
from bitrank_data.corpora import classes, examples_of, language, records
from bitrank_data.splitting import text_key
from bitrank_data.tables import Row


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, list[Row]]], None]:
    """Function that gives an asset the rows of its Parquet files instead of those of its archive."""

    def store(asset: str, files: dict[str, list[Row]]) -> None:
        tables = ASSETS[asset].extraction.files
        rows_of = {name: files.get(name, []) for name in tables}
        changed = {
            name: replace(table, pattern=rf"^{name}$", rows=lambda path, _: rows_of[path])
            for name, table in tables.items()
        }
        extraction = replace(ASSETS[asset].extraction, files=changed)
        monkeypatch.setitem(ASSETS, asset, replace(ASSETS[asset], extraction=extraction))
        monkeypatch.setattr("bitrank_data.assets.download", lambda archive, folder, _: _zip(folder, rows_of))

    return store


def _zip(folder: Path, names: Any) -> Path:
    import zipfile

    with zipfile.ZipFile(folder / "archive.whl", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return folder / "archive.whl"


def row(number: int, text: str, *targets: str, part: str = "", source: str = "", prefix: str = "") -> Row:
    return {
        "part": part,
        "source": source,
        "number": number,
        "prefix": prefix,
        "input": text,
        "targets": list(targets),
        "choices": [],
    }


def test_neutral_and_repeated_snippets_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "amazon.tsv"
    path.write_text("1_1\t0.9\tGood.\n1_2\t-0.4\tSo so.\n2_1\t-2\tBad\ttab.\n2_2\t-3\tgood. \n")
    examples = classes.rated_examples(path, "amazon")
    assert [(e.id, e.text, e.label) for e in examples] == [
        ("amazon-1_1", "Good.", 1),
        ("amazon-2_1", "Bad\ttab.", 0),
    ]


def test_snippets_of_one_document_are_in_one_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [f"{document}_{n}\t{(-1) ** n}\ttext {document} {n}" for document in range(40) for n in range(3)]
    (tmp_path / "amazon.tsv").write_text("\n".join(lines))
    monkeypatch.setattr(classes, "asset_dir", lambda name: tmp_path)
    splits = classes.rated_snippets("amazon", 30, 12).splits
    documents = [{example.id.partition("_")[0] for example in part} for part in splits.values()]
    assert {name: len(part) for name, part in splits.items()} == {"test": 30, "validation": 12, "train": 78}
    assert not (documents[0] & documents[1] or documents[0] & documents[2] or documents[1] & documents[2])


def test_texts_with_several_labels_are_left_out_and_counted() -> None:
    rows = [
        row(0, "Fine", "positive"),
        row(1, "fine ", "neutral"),
        row(2, "Bad", "negative"),
        row(3, "bad", "negative"),
    ]
    examples, report = classes.labelled(rows, "multiemo", classes.EMOTIONS)
    assert [(e.id, e.text, e.label) for e in examples] == [("multiemo-2", "Bad", 0)]
    assert report.counts == {"repeated_rows": 2, "conflicting_texts": 1}
    assert len(report.notes) == 2


def test_claim_and_passage_are_a_pair_and_pages_stay_together(stored) -> None:
    rows = []
    for number in range(30_000):
        page = f"Page-COLON- {number // 10}"
        claim = "a claim about two pages" if number in (0, 10) else f"claim {number}"
        rows.append(
            row(number, f"{page}: text -LRB-{number}-RRB- .\nClaim: {claim}", classes.VERDICTS[number % 3])
        )
    stored("bigbench", {"vitaminc.parquet": rows})
    texts = EMBEDDED["vitaminc"].load()
    (example,) = [e for part in texts.splits.values() for e in part if e.id == "vitaminc-11"]
    assert (example.text, example.pair, example.label) == ("claim 11", "Page: 1: text (11) .", 2)
    place = {e.pair.partition(": text")[0]: name for name, part in texts.splits.items() for e in part}
    for name, part in texts.splits.items():
        assert {place[e.pair.partition(": text")[0]] for e in part} == {name}
    assert place["Page: 0"] == place["Page: 1"]
    assert len(texts.splits["test"]) >= 10_000 and len(texts.splits["validation"]) >= 2_000


def test_conversation_is_a_text_with_a_turn_on_each_line(stored) -> None:
    turns = {"prompt": "", "speakers": ["1", "2", "1", "2"], "turns": ["Hi", "Yo\nthere", "?", "Bye"]}
    short = {"prompt": "", "speakers": ["1", "2"], "turns": ["Hi", "Bye"]}
    rows = [{"name": "long", **turns}, {"name": "short", **short}]
    stored("chitchat", {"chitchat.parquet": rows})
    texts = [e for part in language.chitchat().splits.values() for e in part]
    assert [(e.id, e.text) for e in texts] == [("chitchat-long", "1: Hi\n2: Yo\nthere\n1: ?\n2: Bye")]
    found = [record for part in records.chitchat_messages().values() for record in part]
    roles = ["user", "assistant", "user", "assistant"]
    messages = [{"role": r, "content": turn} for r, turn in zip(roles, turns["turns"], strict=True)]
    assert found == [{"id": "chitchat-long", "messages": messages}]


def test_conversation_is_put_together_from_its_growing_inputs() -> None:
    rows = [
        row(0, 'agent_A: "Hi: you"', '"Yo"', source="c"),
        row(1, 'agent_B: "Hi: you" agent_A: "Yo"', '"Bye "', source="c"),
        row(2, 'agent_A: "Other"', '"One"', source="d"),
    ]
    first, second = records.conversations(rows)
    assert first["id"] == "topical-c"
    assert [m["content"] for m in first["messages"]] == ["Hi: you", "Yo", "Bye"]
    assert [m["role"] for m in first["messages"]] == ["user", "assistant", "user"]
    assert [m["content"] for m in second["messages"]] == ["Other", "One"]


def test_answer_is_the_text_of_the_context() -> None:
    context = "In 1466 , 40 , 000 people ( or 40 , 000 )"
    rows = [
        row(0, f"How many ?  \ncontext: {context}", "40,000"),
        row(1, f"Who ?\ncontext: {context}", "unknown"),
        row(2, f"Why ?\ncontext: {context}", "war"),
        row(3, f"how many ?  \ncontext: {context}", "40"),
        row(4, f" \ncontext: {context}", "40"),
    ]
    found, unknown = records.questions(rows)
    assert found["question"] == "How many ?" and found["context"] == context
    (text,), (start,) = found["answers"]["text"], found["answers"]["answer_start"]
    assert text == "40 , 000" and context[start : start + len(text)] == text and start == 10
    assert unknown["answers"] == {"text": [], "answer_start": []}


def test_prompts_with_several_objects_are_left_out() -> None:
    rows = [row(0, "A is", "b"), row(1, "a is", "c"), row(2, "B is", "c", "d"), row(3, "C is ", "e")]
    assert records.facts(rows) == [{"id": "wikidata-3", "prompt": "C is", "object": "e"}]


def test_inputs_about_one_passage_are_in_one_split_across_instructions(stored) -> None:
    rows = []
    for number in range(4000):
        passage = f"passage {number // 4} " * 12
        part = f"natural_instructions/task{number % 2}"
        rows.append(
            row(number, f"Passage: {passage}\nQ{number}", "x", "y", part=part, prefix=f" do {number % 2} ")
        )
    stored("bigbench", {"natural_instructions.parquet": rows})
    splits = records.natural_instructions()
    assert {name: len(part) for name, part in splits.items()} == {
        "test": 2000,
        "validation": 500,
        "train": 1500,
    }
    passages = [{text_key(r["input"].splitlines()[0]) for r in part} for part in splits.values()]
    assert not (passages[0] & passages[1] or passages[0] & passages[2] or passages[1] & passages[2])
    record = next(r for part in splits.values() for r in part if r["id"] == "task1-5")
    assert (record["instruction"], record["output"]) == ("do 1", "x")


def test_records_become_examples_of_their_kind(stored) -> None:
    passage = "A passage with an answer ."
    asked = [row(n, f"Question {n} ?\ncontext: {passage} {n}", "answer") for n in range(2600)]
    stored("bigbench", {"disfl_qa.parquet": asked})
    splits = EMBEDDED["disfl_qa"].load().splits
    example = splits["test"][0]
    start = example.starts[0]
    assert example.context[start : start + len("answer")] == example.answers[0] == "answer"
    given = {"id": "1", "instruction": "Do", "input": "this", "output": "done"}
    instruction = examples_of.instruction_example(given)
    assert [(t.role, t.content) for t in instruction.turns] == [("user", "Do"), ("assistant", "done")]
    assert (instruction.style, instruction.given) == ("instruction", "this")
    summary = examples_of.summary_example({"id": "1", "source": "long", "target": "short"})
    assert (summary.text, summary.target) == ("long", "short")
    messages = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    conversation = examples_of.conversation_example({"id": "1", "messages": messages})
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"]


def test_summaries_have_source_and_target() -> None:
    assert records.summaries([row(3, "long", "short")], "xsum") == [
        {"id": "xsum-3", "source": "long", "target": "short"}
    ]


@pytest.mark.slow
def test_tasks_of_the_real_archives_have_the_documented_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requires network access or a full cache: the archives have 370 MB."""
    monkeypatch.delenv("BITRANK_CACHE")
    sizes = {
        "multiemo": (45215, 2000, 10000),
        "vitaminc": (42597, 2005, 10058),
        "amazon_snippets": (2073, 302, 602),
        "newspaper_snippets": (1726, 400, 805),
        "tweets": (1972, 400, 1000),
        "brown": (300, 50, 150),
        "chitchat": (2042, 200, 1000),
        "natural_instructions": (19930, 500, 2000),
        "xsum": (501, 100, 400),
        "wikilingua": (501, 100, 400),
        "topical_chat": (578, 100, 400),
        "chitchat_dialogues": (2042, 200, 1000),
        "disfl_qa": (5494, 500, 2000),
        "qa_wikidata": (7810, 1000, 10000),
    }
    for name, expected in sizes.items():
        splits = EMBEDDED[name].load().splits
        assert tuple(len(splits[part]) for part in ("train", "validation", "test")) == expected, name
    expected_records = {
        records.xsum: (501, 100, 400),
        records.wikilingua: (501, 100, 400),
        records.topical_chat: (578, 100, 400),
        records.chitchat_messages: (2042, 200, 1000),
        records.natural_instructions: (19930, 500, 2000),
        records.disfl_qa: (5494, 500, 2000),
        records.qa_wikidata: (7810, 1000, 10000),
    }
    for load, expected in expected_records.items():
        splits = load()
        assert tuple(len(splits[part]) for part in ("train", "validation", "test")) == expected, load.__name__
    assert (asset_dir("mpnet") / "model.safetensors").stat().st_size == 437_971_872
