"""Hub tasks whose repository has the splits, from small local folders in hub format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from bitrank_data import DataError, Texts, open_task
from bitrank_data.hub import HUB
from bitrank_data.hub_official_splits import CNN_DAILYMAIL, sample

Row = dict[str, Any]


def pair(number: int) -> Row:
    return {"sentence1": f"film {number}", "sentence2": f"story {number}", "label": number % 2, "idx": number}


def question(number: int) -> Row:
    """Three questions about each passage."""
    context = f"The film {number // 3} was made in 19{number // 3:02}."
    answers = {"text": [context[-5:-1]], "answer_start": [len(context) - 5]}
    return {"id": f"q{number}", "question": f"When, {number}?", "context": context, "answers": answers}


def unanswered(number: int) -> Row:
    row = question(number)
    return row if number % 2 else {**row, "answers": {"text": [], "answer_start": []}}


def article(number: int) -> Row:
    return {"article": f"News of day {number}.", "highlights": f"Day {number}.", "id": str(number)}


def translation(number: int) -> Row:
    return {"translation": {"de": f"Film Nummer {number}.", "en": f"Film number {number}."}}


ROWS = {
    "mrpc": pair,
    "rte": pair,
    "squad": question,
    "squad_v2": unanswered,
    "cnn_dailymail": article,
    "wmt14": translation,
}


def stored(folder: Path, **splits: list[Row]) -> str:
    parts = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return str(folder)


def opened(name: str, folder: Path, train: int = 60, others: int = 12) -> Texts:
    make = ROWS[name]
    start = train // 3 * 3
    rows = {"train": [make(n) for n in range(train)]}
    for split in ("validation", "test"):
        rows[split] = [make(n) for n in range(start, start + others)]
        start += others
    return open_task(name, stored(folder, **rows)).load()


@pytest.mark.parametrize("name", ROWS)
def test_the_kind_of_the_examples_is_that_of_the_task(tmp_path: Path, name: str) -> None:
    texts = opened(name, tmp_path / name)
    assert texts.kind == HUB[name].kind
    ids = [example.id for part in texts.splits.values() for example in part]
    assert len(ids) == len(set(ids)) and all(len(texts.splits[s]) for s in ("train", "validation", "test"))


@pytest.mark.parametrize("name", ["mrpc", "rte"])
def test_labelled_validation_pairs_of_glue_are_the_test_set(tmp_path: Path, name: str) -> None:
    texts = opened(name, tmp_path / name)
    assert {split: len(part) for split, part in texts.splits.items()} == {
        "train": 54,
        "validation": 6,
        "test": 12,
    }
    first = texts.splits["test"][0]
    assert (first.id, first.text, first.pair, first.label) == (
        f"{name}-validation-0",
        "film 60",
        "story 60",
        0,
    )
    assert len(texts.classes) == 2


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_questions_about_a_passage_share_a_split(tmp_path: Path, name: str) -> None:
    texts = opened(name, tmp_path / name)
    contexts = {split: {example.context for example in part} for split, part in texts.splits.items()}
    assert not contexts["train"] & contexts["validation"]
    assert len(texts.splits["train"]) + len(texts.splits["validation"]) == 60
    last = texts.splits["test"][1]
    assert last.id == f"{name}-validation-1" and last.answers == ("1920",) and last.starts == (24,)
    assert texts.splits["test"][0].answers == (() if name == "squad_v2" else ("1920",))


def test_given_splits_of_summaries_and_translations_are_kept(tmp_path: Path) -> None:
    summaries, translations = (opened(name, tmp_path / name) for name in ("cnn_dailymail", "wmt14"))
    for texts in (summaries, translations):
        assert {split: len(part) for split, part in texts.splits.items()} == {
            "train": 60,
            "validation": 12,
            "test": 12,
        }
    assert (summaries.splits["test"][0].text, summaries.splits["test"][0].target) == (
        "News of day 72.",
        "Day 72.",
    )
    assert translations.splits["train"][1].text == "Film number 1."
    assert translations.splits["train"][1].target == "Film Nummer 1."


def test_a_sample_is_spread_over_the_split_and_keeps_the_numbers_of_its_rows() -> None:
    rows = datasets.Dataset.from_list([{"n": n} for n in range(10)])
    assert [(number, row["n"]) for number, row in sample(rows, 4)] == [(0, 0), (2, 2), (5, 5), (7, 7)]
    assert len(sample(rows, None)) == len(sample(rows, 10)) == len(sample(rows, 11)) == 10


def test_large_summaries_are_sampled_to_the_stated_sizes(tmp_path: Path) -> None:
    texts = opened("cnn_dailymail", tmp_path / "news", train=10_002, others=1_500)
    assert {split: len(part) for split, part in texts.splits.items()} == CNN_DAILYMAIL.sizes


def test_test_examples_that_are_in_train_are_counted(tmp_path: Path) -> None:
    train = [pair(n) for n in range(20)]
    texts = open_task("mrpc", stored(tmp_path / "mrpc", train=train, validation=[pair(3), pair(30)])).load()
    # The copy may be one of the training rows that validate.
    trained = {example.text for example in texts.splits["train"]}
    assert texts.report.counts["test_texts_in_train"] == int("film 3" in trained)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mrpc", {"label": -1}, r"mrpc: the label of row 2 of train is -1, expected 0 to 1 \(not_equiv"),
        ("squad", {"answers": {"text": ["no"], "answer_start": [0]}}, "squad: the answers of row 2 of train"),
        ("wmt14", {"translation": {"de": None, "en": None}}, None),
    ],
)
def test_an_unusable_row_is_refused_or_counted(
    tmp_path: Path, name: str, changes: Row, message: str | None
) -> None:
    rows = [ROWS[name](n) for n in range(30)]
    rows[1] |= changes
    source = open_task(name, stored(tmp_path / name, train=rows, validation=rows[:1], test=rows[:1]))
    if message is None:
        texts = source.load()
        assert len(texts.splits["train"]) == 29 and texts.report.counts["train_rows_without_text"] == 1
        assert "1 rows of train have no text and were left out (the first: row 2)" in texts.report.notes
        return
    with pytest.raises(DataError, match=message):
        source.load()


def test_a_split_or_column_that_the_folder_lacks_is_named(tmp_path: Path) -> None:
    folder = stored(tmp_path / "mrpc", train=[pair(0)])
    with pytest.raises(DataError, match="mrpc needs a split 'validation'; found train"):
        open_task("mrpc", folder).load()
    folder = stored(tmp_path / "news", train=[pair(0)], validation=[pair(0)], test=[pair(0)])
    with pytest.raises(DataError, match="cnn_dailymail needs the column 'article' in train"):
        open_task("cnn_dailymail", folder).load()
