"""Messages quote the user's data in part: a cell may have any length."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from bitrank_data import DataError, FileOptions, open_task, tokenise
from bitrank_data.rows import quoted, shortened, shown

LONG = "word " * 40_000
NAME = LONG.strip()
LONGEST = 1000  # characters of a message
ROWS = [{"text": f"film {n}", "label": f"class {n % 2}"} for n in range(40)]
ASKED = {"question": "what", "context": LONG + "the end", "answers": ["the end"]}
SAID = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]


def chat(*messages: Any) -> list[dict[str, Any]]:
    return [{"messages": [*SAID, *messages]}] * 12


REFUSED: dict[str, list[dict[str, Any]]] = {
    "answer that is absent": [{**ASKED, "answers": [LONG + "no"]}],
    "answer that is twice in the context": [{**ASKED, "context": (LONG + "x") * 2, "answers": [LONG]}],
    "answer at another place": [{**ASKED, "answers": [LONG], "answer_start": [2]}],
    "answer_start of another type": [{**ASKED, "answer_start": [LONG]}],
    "large answer_start": [{**ASKED, "answer_start": [10**4000]}],
    "answer of another type": [{**ASKED, "answers": [[LONG]]}],
    "text of another type": [{"text": 10**4000}],
    "text with long fields": [{"text": {LONG: 1}}],
    "one class": [{**row, "label": LONG} for row in ROWS],
    "class with few texts": [*ROWS, {"text": "a", "label": LONG}],
    "classes like ids": [{"text": f"film {n}", "label": f"{n // 3} {LONG}"} for n in range(40)],
    "classes of another spelling": [
        *ROWS,
        {"text": "a", "label": LONG},
        {"text": "b", "label": LONG.upper()},
    ],
    "unknown speaker": chat({"from": LONG, "value": "so"}),
    "speaker of another type": chat({"from": [LONG] * 9, "value": "so"}),
    "role of another type": chat({"role": {LONG: LONG}, "content": "so"}),
    "turn with long fields": chat(dict.fromkeys((f"{n} {LONG}" for n in range(20)), "so")),
    "column like a label": [{"text": "a", "label" + " " * 40_000: "b"}],
    "column like a text": [{"text" + " " * 40_000: "a"}],
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_quotes_a_long_value_in_part(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in REFUSED[name]))
    with pytest.raises(DataError) as error:
        open_task(str(tmp_path / "x.jsonl"))
    # A file without a known column gets the columns of all kinds of tasks, whose number is fixed.
    assert len(str(error.value)) < LONGEST + (500 if "column 'text'" in str(error.value) else 0)


@pytest.mark.parametrize(
    "options",
    [
        FileOptions(text_column=NAME),
        FileOptions(label_column=NAME),
        FileOptions(text_column=f"{NAME},{NAME},{NAME}"),
    ],
)
def test_an_error_quotes_a_long_name_of_a_column_in_part(options: FileOptions, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(DataError) as error:
        open_task(str(tmp_path / "x.jsonl"), options=options)
    assert len(str(error.value)) < LONGEST


def written(path: Path, rows: list[tuple[str, str]]) -> str:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


def test_an_error_on_given_splits_quotes_a_long_label_in_part(tmp_path: Path) -> None:
    rows = [(f"film {n}", f"class {n % 2}") for n in range(40)]
    written(tmp_path / "task" / "train.csv", rows)
    written(tmp_path / "task" / "test.csv", [*rows, ("a film", LONG)])
    with pytest.raises(DataError, match=r"row 41 \(line 42\) of test.csv has the label 'word word") as error:
        open_task(str(tmp_path / "task"))
    assert len(str(error.value)) < LONGEST


def test_notes_quote_long_labels_and_columns_in_part(tmp_path: Path, tokenizer: Any) -> None:
    rows = [(f"film {n}", f"{n % 11} {LONG}{' ' * (n // 11 % 3)}") for n in range(66)]
    rows += [("film 0", f"5 {LONG}")]
    written(tmp_path / "task" / "train.csv", rows)
    written(tmp_path / "task" / "test.csv", rows[:1])
    written(tmp_path / "one" / "x.csv", rows)
    for path in (tmp_path / "task", tmp_path / "one" / "x.csv"):
        notes = tokenise(open_task(str(path)), tokenizer, 8).report.notes
        assert any("'0 word word" in note for note in notes)
        assert max(map(len, notes)) < LONGEST


def test_notes_on_spellings_of_classes_are_limited_in_number(tmp_path: Path) -> None:
    rows = [(f"film {n}", f"class {n % 300}{' ' * (n // 300)}") for n in range(1800)]
    notes = open_task(written(tmp_path / "x.csv", rows)).load().report.notes
    several = [note for note in notes if "are one class" in note]
    assert (
        several[0].startswith("'class 0' and 'class 0 ' and ")
        and " and … are one class, 'class 0'" in several[0]
    )
    assert len(several) == 10 and "290 further classes have several spellings" in notes


TEMPLATES = {
    "{{ raise_exception('no ' + messages[0].content) }}": "rejects a conversation",
    "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}": "leaves out the turn",
    None: "the tokenizer has no chat template",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_error_of_a_template_quotes_turns_in_part(
    template: str | None, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [{"role": NAME, "content": LONG}, *[{"role": "user", "content": "why"}] * 50, *SAID]
    rows = [
        json.dumps({"messages": [*messages, {"role": "user", "content": f"{n}"}, *SAID]}) for n in range(12)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(DataError, match=TEMPLATES[template]) as error:
        tokenise(open_task(str(tmp_path / "x.jsonl")), tokenizer, 8)
    assert len(str(error.value)) < LONGEST


def test_an_encoder_decoder_refuses_a_long_conversation_in_few_words(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        json.dumps({"messages": [*SAID * 500, {"role": "user", "content": f"{n}"}, *SAID]}) for n in range(12)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    source = open_task(str(tmp_path / "x.jsonl"), kind="sequence-to-sequence")
    with pytest.raises(DataError, match="an encoder-decoder maps one source") as error:
        tokenise(source, tokenizer, 8)
    assert len(str(error.value)) < LONGEST


def test_a_short_value_is_quoted_whole_and_a_long_one_with_a_mark() -> None:
    assert quoted("a film") == "'a film'" and quoted(1.5) == "1.5" and quoted([1, "a"]) == "[1, 'a']"
    assert quoted("x" * 50) == f"'{'x' * 39}…'" and len(quoted({"a": ["b" * 99] * 99})) == 40
    assert shown(["a", "x" * 50]) == f"a, {'x' * 39}…" and shown(["a"] * 13).endswith("a, …")


def test_a_value_without_an_encoding_is_quoted_so_that_it_can_be_printed() -> None:
    assert shortened("a\ud800") == r"a\ud800" == shown(["a\ud800"])
