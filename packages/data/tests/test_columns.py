"""Columns of a user's file by convention and by name, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bitrank_data import (
    DataError,
    Dialogue,
    FileOptions,
    PairExample,
    Turn,
    evaluation_batches,
    open_task,
    tokenise,
)
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

PAIRS = [{"premise": f"film {n} is good", "hypothesis": f"it is {n}", "label": n % 2} for n in range(30)]
CHATS = [
    {"messages": [{"role": "user", "content": f"is film {n} good"}, {"role": "assistant", "content": "the"}]}
    for n in range(12)
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        writer = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
        with writer(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=7)
    elif path.suffix in {".csv", ".tsv"}:
        sign = "," if path.suffix == ".csv" else "\t"
        lines = [sign.join(rows[0]), *(sign.join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def everything(texts: Any) -> list[Any]:
    return sorted((example for part in texts.splits.values() for example in part), key=lambda e: int(e.id))


NAMES = ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "a.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_pairs(tmp_path: Path, name: str) -> None:
    texts = open_task(write(tmp_path / name, PAIRS)).load()
    assert texts.kind == "classification" and texts.classes == ("0", "1")
    expected = [
        PairExample(str(n), row["premise"], row["label"], row["hypothesis"]) for n, row in enumerate(PAIRS)
    ]
    assert everything(texts) == expected


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet", "a.arrow"])
def test_nested_formats_give_the_same_conversations(tmp_path: Path, name: str) -> None:
    texts = open_task(write(tmp_path / name, CHATS)).load()
    assert texts.kind == "instruction-following"
    assert everything(texts)[3].turns == (Turn("user", "is film 3 good"), Turn("assistant", "the"))


def test_pairs_with_one_equal_text_are_different_examples(tmp_path: Path) -> None:
    rows = [{"sentence1": "the film", "sentence2": f"is {n}", "label": n % 2} for n in range(40)]
    texts = open_task(write(tmp_path / "x.jsonl", rows)).load()
    assert texts.report.counts["repeated_rows"] == 0
    assert {split: len(part) for split, part in texts.splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }


def test_pairs_are_encoded_together_and_the_longer_text_is_cut_first(tmp_path: Path) -> None:
    words = ["[PAD]", "[CLS]", "[SEP]", "film", "is", "good", "it"]
    model = Tokenizer(WordLevel({word: n for n, word in enumerate([*words, "[UNK]"])}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", model_input_names=names
    )
    rows = [
        {"text": "film is good " * 3 + f"{n}", "text_pair": f"it is {n}", "label": n % 2} for n in range(20)
    ]
    task = tokenise(open_task(write(tmp_path / "x.jsonl", rows)), tokenizer, 9)
    split = task.splits["train"]
    assert split.sequence(0).tolist() == [1, 3, 4, 5, 2, 6, 4, 7, 2], "three words of each text remain"
    assert split.types_of(0).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    batch = next(
        evaluation_batches(split.select(np.asarray([2, 0])), task.kind, task.pad_id, batch_tokens=64)
    )
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 1]] * 2
    assert task.report.counts["texts_cut"] == 20


def test_named_columns_replace_those_of_the_convention(tmp_path: Path) -> None:
    rows = [{"review": f"film {n}", "stars": n % 3, "text": "other"} for n in range(40)]
    path = write(tmp_path / "x.csv", rows)
    both = open_task(path, options=FileOptions("review", "stars"))
    texts = both.load()
    assert texts.classes == ("0", "1", "2")
    assert [example.text for example in everything(texts)] == [row["review"] for row in rows]
    assert "columns that are not used: text" in texts.report.notes
    plain = open_task(path, options=FileOptions("review"))
    assert plain.kind == "language-modelling" and plain.fingerprint() != both.fingerprint()


def test_two_named_columns_are_a_pair(tmp_path: Path) -> None:
    rows = [{"a": f"film {n}", "b": "it", "same": n % 2} for n in range(30)]
    path = write(tmp_path / "x.csv", rows)
    texts = open_task(path, options=FileOptions("a, b", "same")).load()
    assert everything(texts)[4] == PairExample("4", "film 4", 0, "it")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FileOptions("body"), "no column 'body', which was named; found text, stars"),
        (FileOptions("text", "label"), "no column 'label', which was named; found text, stars"),
        (FileOptions("a,b,c"), "expected the name of one text column, or two names as in 'a,b', got 'a,b,c'"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, options: FileOptions, message: str) -> None:
    path = write(tmp_path / "x.csv", [{"text": f"film {n}", "stars": n % 2} for n in range(20)])
    with pytest.raises(DataError, match=message):
        open_task(path, options=options)


def test_options_of_files_are_refused_for_other_tasks() -> None:
    with pytest.raises(DataError, match="text_column: only for your own files, and toy_sentences is not one"):
        open_task("toy_sentences", options=FileOptions("text"))


def test_instructions_keep_their_input_and_conversations_their_system_text(tmp_path: Path) -> None:
    rows = [{"instruction": f"name {n}", "input": "a film" if n else "", "output": "good"} for n in range(12)]
    first, second, *_ = everything(open_task(write(tmp_path / "a.jsonl", rows)).load())
    assert (first.given, second.given) == ("", "a film") and first.style == second.style == "instruction"
    shared = [
        {
            "conversations": [{"from": "human", "value": f"film {n}"}, {"from": "gpt", "value": "good"}],
            "system": "be fine",
        }
        for n in range(12)
    ]
    chat = everything(open_task(write(tmp_path / "b.jsonl", shared)).load())[2]
    assert [turn.role for turn in chat.turns] == ["system", "user", "assistant"]
    assert isinstance(chat, Dialogue) and chat.turns[0].content == "be fine"


def test_examples_with_one_prompt_share_a_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"film {n % 20}", "completion": f"good {n}"} for n in range(100)]
    texts = open_task(write(tmp_path / "x.jsonl", rows)).load()
    prompts = {split: {e.turns[0].content for e in part} for split, part in texts.splits.items()}
    assert not prompts["train"] & (prompts["test"] | prompts["validation"])
    assert len(texts.splits["train"]) == 80 and len(texts.splits["test"]) == 2


@pytest.mark.parametrize(("size", "indent"), [(10, None), (200_000, 1), (200_000, None)])
def test_an_array_is_parsed_piece_by_piece(tmp_path: Path, size: int, indent: int | None) -> None:
    rows = [{"text": f"film [ {{ \\u2028 {n} " + "good " * (size // 5)} for n in range(12)]
    (tmp_path / "x.json").write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    assert [e.text for e in everything(open_task(str(tmp_path / "x.json")).load())] == [
        row["text"] for row in rows
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, {"text": "b"', "row 2 of its array"),
        ('[{"text": "a"} {"text": "b"}]', "row 1 of its array: expected a comma"),
        ('[{"text": "a"}]\n[1]', r"row 1 \(line 1\) is no JSON object but an array"),
        ('{\n "text": "a"\n}', "line 1: .*Write one JSON object a line"),
    ],
)
def test_broken_json_is_refused_with_its_row(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_task(str(tmp_path / "x.json"))


def test_a_named_text_beside_a_target_is_refused_as_a_column_text_is(tmp_path: Path) -> None:
    rows = [{"id": n, "tweet": f"film {n} is good", "target": n % 2} for n in range(30)]
    path = write(tmp_path / "x.jsonl", rows)
    expected = (
        r"has a column 'target' but none called 'label'; found id, tweet, target\. For classification rename "
        r"'target' to 'label' or name it with --label-column; for language modelling remove it; for "
        r"sequence-to-sequence call the text 'source'"
    )
    with pytest.raises(DataError, match=expected):
        open_task(path, options=FileOptions(text_column="tweet"))
    texts = open_task(path, options=FileOptions(text_column="tweet", label_column="target")).load()
    assert texts.kind == "classification" and texts.classes == ("0", "1")


def test_a_named_text_with_a_label_is_classified_beside_a_target(tmp_path: Path) -> None:
    rows = [{"tweet": f"film {n} is good", "label": n % 2, "target": "x"} for n in range(30)]
    source = open_task(write(tmp_path / "x.jsonl", rows), options=FileOptions(text_column="tweet"))
    assert source.kind == "classification"


@pytest.mark.parametrize(("text", "target"), [("dialogue", "summary"), ("source", "target")])
def test_a_named_source_of_a_summary_or_target_is_rewritten_to_it(
    tmp_path: Path, text: str, target: str
) -> None:
    rows = [{text: f"film {n} is good", target: f"film {n}"} for n in range(30)]
    source = open_task(write(tmp_path / "x.jsonl", rows), options=FileOptions(text_column=text))
    assert source.kind == "sequence-to-sequence"
