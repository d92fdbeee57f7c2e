"""Splits of conversations that grow turn by turn: no tested answer, in its context, is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bitrank_data import Texts, open_task
from bitrank_data.examples import Dialogue, Turn

Turns = list[dict[str, str]]


def said(*contents: str) -> Turns:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]


def task(path: Path, conversations: Iterable[Turns]) -> Texts:
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in conversations))
    texts: Texts = open_task(str(path)).load()
    return texts


def grown(count: int, states: int = 2) -> list[Turns]:
    whole = [
        [text for turn in range(states) for text in (f"q {n} {turn}", f"a {n} {turn}")] for n in range(count)
    ]
    return [said(*contents[: 2 * state]) for contents in whole for state in range(1, states + 1)]


def answers(examples: Iterable[Any]) -> set[tuple[Any, ...]]:
    """Each answer with all that precedes it."""
    found = set()
    for example in examples:
        found |= {example.turns[: n + 1] for n, turn in enumerate(example.turns) if turn.role == "assistant"}
    return found


def test_no_answer_of_test_is_trained_on_where_each_conversation_has_a_shorter_row(tmp_path: Path) -> None:
    texts = task(tmp_path / "grow.jsonl", grown(60))
    trained = answers(texts.splits["train"])
    assert not trained & answers(texts.splits["test"]) and not trained & answers(texts.splits["validation"])
    sizes = {split: len(rows) for split, rows in texts.splits.items()}
    assert sizes == {"train": 96, "validation": 6, "test": 6}
    assert all(len(example.turns) == 4 for example in texts.splits["test"]), "the longest of each group"
    (note,) = [note for note in texts.report.notes if "continue" in note]
    assert note == (
        "60 rows continue the conversation of another row and count as its repeats: they are in one split "
        "with it, and validation and test have the longest of such rows alone"
    )


def test_a_tenth_of_the_grown_conversations_is_in_test_however_many_rows_they_have(tmp_path: Path) -> None:
    singles = [said(f"s {n}", f"t {n}") for n in range(1500)]
    for states in (2, 4, 8):
        texts = task(tmp_path / f"{states}.jsonl", [*singles, *grown(500, states)])
        for split in ("validation", "test"):
            held_out = [len(example.turns) for example in texts.splits[split]]
            assert len(held_out) == 200, "a tenth of all groups"
            # 50 are expected, with a standard deviation of 5.8 (hypergeometric); by the smallest digest
            # they were 79 to 149.
            assert 33 <= held_out.count(2 * states) <= 67


def test_rows_that_continue_one_of_two_answers_in_several_ways_are_in_one_split(tmp_path: Path) -> None:
    rows = []
    for n in range(40):
        start = [f"q {n}", f"a {n}", "go on", f"d {n}"]
        rows += [said(*start), said(*start, "more", f"b {n}"), said(*start, "why", f"c {n}")]
    texts = task(tmp_path / "grow.jsonl", rows)
    assert not answers(texts.splits["train"]) & answers(texts.splits["test"])
    assert len(texts.splits["test"]) == 4


GREETING = ("hello", "Hi! How can I help?")


def test_a_row_that_is_a_common_opening_joins_one_conversation_alone(tmp_path: Path) -> None:
    greeted = [said(*GREETING, f"q {n}", f"a {n}") for n in range(199)]
    longest = said(*GREETING, "q", "a", "q 2", "a 2")
    texts = task(tmp_path / "greetings.jsonl", [said(*GREETING), *greeted, longest])
    assert {split: len(rows) for split, rows in texts.splits.items() if split != "train"} == {
        "validation": 20,
        "test": 20,
    }
    counts = texts.report.counts
    assert counts["continued_conversations"] == 1 and counts["repeated_rows"] == 1
    whole = {split: {example.turns for example in rows} for split, rows in texts.splits.items()}
    turns = [tuple(Turn(**turn) for turn in row) for row in (said(*GREETING), longest)]
    (place,) = [split for split, rows in whole.items() if turns[1] in rows]
    assert (turns[0] in whole["train"]) == (place == "train"), "the opening is no text of its own"


def test_different_answers_to_one_opening_join_one_conversation_together(tmp_path: Path) -> None:
    rows = [said("hello", f"hi {n}") for n in range(40)]
    rows += [said("hello", f"hi {n}", f"q {n}", f"a {n}") for n in range(40)]
    texts = task(tmp_path / "greetings.jsonl", rows)
    assert [len(texts.splits[split]) for split in ("validation", "test")] == [4, 4]
    assert texts.report.counts["continued_conversations"] == 1
    trained = answers(texts.splits["train"])
    assert not trained & {example.turns for example in texts.splits["test"]}, "no last answer is trained on"


def test_the_split_of_grown_conversations_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [*grown(30, states=3), said(*GREETING), *(said(*GREETING, f"q {n}", "a") for n in range(30))]
    first, second = task(tmp_path / "a.jsonl", rows), task(tmp_path / "b.jsonl", rows[::-1])
    for split in ("validation", "test"):
        assert answers(first.splits[split]) == answers(second.splits[split])


def test_conversations_that_share_an_opening_alone_are_split_by_their_own_text(tmp_path: Path) -> None:
    rows = [said("hi", "hello", f"q {n}", f"a {n}") for n in range(40)]
    texts = task(tmp_path / "greetings.jsonl", rows)
    assert {split: len(found) for split, found in texts.splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert "continued_conversations" not in texts.report.counts


def folder(path: Path, **splits: list[Turns]) -> Texts:
    path.mkdir()
    for split, conversations in splits.items():
        lines = [json.dumps({"messages": turns}) + "\n" for turns in conversations]
        (path / f"{split}.jsonl").write_text("".join(lines))
    texts: Texts = open_task(str(path)).load()
    return texts


def singles(name: str, count: int) -> list[Turns]:
    return [said(f"{name} {n}", "x") for n in range(count)]


def test_a_given_test_row_that_training_continues_is_counted(tmp_path: Path) -> None:
    train = [said("q", "a", "q2", "a2"), *singles("train", 12)]
    report = folder(tmp_path / "task", train=train, test=[said("q", "a"), *singles("test", 12)]).report
    assert "1 of 13 texts of test go on in a text of train, as in the files" in report.notes
    assert report.counts["test_texts_that_go_on_in_train"] == 1
    assert report.counts["test_texts_that_continue_train"] == report.counts["test_texts_in_train"] == 0


def test_given_splits_that_share_a_greeting_have_no_texts_in_common(tmp_path: Path) -> None:
    train = [said(*GREETING), *(said(*GREETING, f"q {n}", "a") for n in range(20))]
    validation = [said(*GREETING, "v", "a"), *singles("validation", 3)]
    test = [*(said(*GREETING, f"t {n}", "a") for n in range(10)), *singles("test", 5)]
    texts = folder(tmp_path / "task", train=train, validation=validation, test=test)
    assert {split: len(rows) for split, rows in texts.splits.items()} == {
        "train": 21,
        "validation": 4,
        "test": 15,
    }
    assert texts.report.notes == (
        "1 of 4 texts of validation continue a text of train, as in the files",
        "10 of 15 texts of test continue a text of train, as in the files",
    )


def test_rows_of_a_given_test_split_join_no_rows_of_training(tmp_path: Path) -> None:
    start = ["q", "a", "q 2", "a 2"]
    train = [said(*start, f"q {n}", "a") for n in range(40)]
    texts = folder(tmp_path / "task", train=train, test=[said(*start), *singles("test", 3)])
    assert [len(texts.splits[split]) for split in ("train", "validation")] == [36, 4]
    assert "continued_conversations" not in texts.report.counts


def test_validation_that_is_taken_from_training_has_the_longest_row_of_each_conversation(
    tmp_path: Path,
) -> None:
    texts = folder(tmp_path / "task", train=grown(40), test=singles("test", 3))
    assert [len(texts.splits[split]) for split in ("train", "validation", "test")] == [72, 4, 3]
    assert all(len(example.turns) == 4 for example in texts.splits["validation"])
    assert texts.report.notes[0] == (
        "40 rows continue the conversation of another row and count as its repeats: they are in one split "
        "with it, and validation has the longest of such rows alone"
    )


def test_an_answer_that_opens_a_conversation_is_context() -> None:
    turns = (Turn("assistant", "hello"), Turn("user", "q"), Turn("assistant", "a"))
    (only,) = Dialogue("1", "", None, turns).answered
    assert only == "assistant\0hello\0user\0q\0assistant\0a\0"
