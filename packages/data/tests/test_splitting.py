"""Equal texts share a split, every split has every class, and row order has no effect."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bitrank_data import DataError, PairExample, Texts, open_task
from bitrank_data.splitting import Keyed, key_digest, split_by_text, text_key
from hypothesis import given
from hypothesis import strategies as st

LABELLED = st.lists(
    st.tuples(st.sampled_from([f"text {n}" for n in range(30)]), st.integers(0, 1)), min_size=1, max_size=200
)


def keyed(rows: list[tuple[str, int]]) -> Keyed:
    digests = b"".join(key_digest(text) for text, _ in rows)
    labels = np.asarray([label for _, label in rows], dtype=np.int32)
    return Keyed(digests, labels, lambda row: f"row {row}", ("a", "b"))


def load(path: Path, rows: list[dict]) -> Texts:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return open_task(str(path)).load()


def reference_split(rows: list[tuple[str, int]]) -> dict[str, list[int]]:
    """The rule in plain Python: groups by text in the order of their hash, a tenth of each class."""
    groups: dict[str, list[int]] = {}
    for row, (text, _) in enumerate(rows):
        groups.setdefault(text_key(text), []).append(row)
    ordered = [groups[key] for key in sorted(groups, key=lambda key: hashlib.sha256(key.encode()).digest())]
    by_class: dict[int, list[int]] = {}
    for number, group in enumerate(ordered):
        counts = Counter(rows[row][1] for row in group)
        by_class.setdefault(min(counts, key=lambda label: (-counts[label], label)), []).append(number)
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for number, group in enumerate(ordered):
        place, split = next((p.index(number), p) for p in by_class.values() if number in p)
        tenth = max(1, (len(split) + 5) // 10)
        name = "test" if place < tenth else "validation" if place < 2 * tenth else "train"
        first = {rows[row][1]: row for row in reversed(group)}
        splits[name] += group if name == "train" else sorted(first.values())
    return splits


@given(LABELLED)
def test_splits_are_disjoint_and_contain_every_class(rows: list[tuple[str, int]]) -> None:
    try:
        splits, report = split_by_text(keyed(rows))
    except DataError as error:
        assert "different texts" in str(error) or "carry another label more often" in str(error)
        return
    assert {split: part.tolist() for split, part in splits.items()} == reference_split(rows)
    keys = {split: {text_key(rows[row][0]) for row in part} for split, part in splits.items()}
    assert (
        not keys["train"] & keys["validation"]
        | keys["train"] & keys["test"]
        | keys["validation"] & keys["test"]
    )
    assert all({rows[row][1] for row in part} == {0, 1} for part in splits.values())
    kept = sum(len(part) for part in splits.values())
    assert kept + report.counts["repeats_left_out"] == len(rows), "each row is in a split or counted"
    assert report.counts["repeated_rows"] == len(rows) - len({text for text, _ in rows})
    for split in ("validation", "test"):
        seen = [rows[row] for row in splits[split]]
        assert len(seen) == len(set(seen))


def test_row_order_does_not_change_the_splits(tmp_path: Path) -> None:
    rows = [{"text": f"text {n % 30}", "label": n % 3 % 2} for n in range(60)]
    first = load(tmp_path / "a.jsonl", rows)
    random.Random(0).shuffle(rows)
    again = load(tmp_path / "b.jsonl", rows)
    for split, part in first.splits.items():
        assert sorted((e.text, e.label) for e in part) == sorted(
            (e.text, e.label) for e in again.splits[split]
        )


def test_validation_and_test_hold_a_tenth_of_each_class(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "common" if n % 10 else "rare"} for n in range(300)]
    texts = load(tmp_path / "x.jsonl", rows)
    for split, expected in {"train": (216, 24), "validation": (27, 3), "test": (27, 3)}.items():
        labels = [example.label for example in texts.splits[split]]
        assert (labels.count(0), labels.count(1)) == expected


def test_texts_are_equal_after_unicode_case_and_space_normalization() -> None:
    assert text_key("  Stra\u00dfe\u00a0 \n A") == text_key("STRASSE a")
    assert text_key("e\u0301") == text_key("\u00e9")
    assert text_key("a b") != text_key("ab")


def test_white_space_at_the_ends_of_a_part_does_not_make_another_text() -> None:
    pair = PairExample("1", "What is it?", 0, pair="A dog").key
    assert text_key(pair) == "what is it?\0a dog"
    for first, second in (("What is it? ", "A dog"), ("What is it?", " A dog"), ("\nWhat is it?", "A dog\t")):
        assert key_digest(PairExample("2", first, 0, pair=second).key) == key_digest(pair)
    assert text_key(PairExample("3", "What", 0, pair="is it? A dog").key) != text_key(pair)


def test_prompts_that_differ_by_a_last_space_are_in_one_split(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"question {n}:{end}", "completion": f"answer {n}"} for n in range(60) for end in ("", " ")
    ]
    texts = load(tmp_path / "x.jsonl", rows)
    prompts = {split: {text_key(e.turns[0].content) for e in part} for split, part in texts.splits.items()}
    assert {split: len(found) for split, found in prompts.items()} == {
        "train": 48,
        "validation": 6,
        "test": 6,
    }
    assert not prompts["train"] & (prompts["validation"] | prompts["test"])
    assert texts.report.counts["repeated_rows"] == 60


def test_copies_of_training_texts_are_not_in_test(tmp_path: Path) -> None:
    """Twenty sentences with random labels, twenty copies each: no test text occurs in training.

    Each test text is evaluated once.
    """
    generator = random.Random(0)
    labels = [generator.randint(0, 1) for _ in range(20)]
    rows = [
        {"text": f"Sentence {n}" if copy % 2 else f"sentence  {n}", "label": labels[n]}
        for n in range(20)
        for copy in range(20)
    ]
    texts = load(tmp_path / "x.jsonl", rows)
    seen = {text_key(example.text) for example in texts.splits["train"]}
    assert not [example for example in texts.splits["test"] if text_key(example.text) in seen]
    assert len(texts.splits["test"]) == len({text_key(example.text) for example in texts.splits["test"]})
    assert texts.report.counts["repeated_rows"] == 380
    assert any("380 rows repeat the text of another row" in note for note in texts.report.notes)


def test_training_keeps_repeated_texts(tmp_path: Path) -> None:
    rows = [{"text": f"text {n % 30}", "label": n % 2} for n in range(90)]
    texts = load(tmp_path / "x.jsonl", rows)
    assert (
        len(texts.splits["train"]) == 66 and len(texts.splits["test"]) == len(texts.splits["validation"]) == 4
    )
    assert texts.report.counts["repeats_left_out"] == 16 and texts.report.counts["conflicting_texts"] == 0


def test_conflicting_labels_are_counted_and_reported(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(40)] + [{"text": "TEXT 7", "label": 0}]
    texts = load(tmp_path / "x.jsonl", rows)
    assert texts.report.counts["conflicting_texts"] == 1
    expected = (
        "1 texts have different labels in different rows "
        "(such as row 8 (line 8) '1' and row 41 (line 41) '0'); all are kept"
    )
    assert expected in texts.report.notes


def test_repeated_documents_count_once_in_validation_and_test(tmp_path: Path) -> None:
    texts = load(tmp_path / "x.jsonl", [{"text": f"document {n % 20}"} for n in range(100)])
    assert {split: len(part) for split, part in texts.splits.items()} == {
        "train": 80,
        "validation": 2,
        "test": 2,
    }


def test_too_few_different_documents_raise_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are 2 different texts"):
        load(tmp_path / "x.jsonl", [{"text": f"document {n % 2}"} for n in range(100)])


@pytest.mark.parametrize(("classes", "each"), [(10_000, 3), (11, 3)])
def test_many_classes_of_one_training_text_each_are_rejected(tmp_path: Path, classes: int, each: int) -> None:
    rows = [{"text": f"text {n}", "label": f"id {n % classes}"} for n in range(each * classes)]
    with pytest.raises(DataError, match=rf"{classes} classes have {classes} different training texts"):
        load(tmp_path / "x.jsonl", rows)


@pytest.mark.parametrize(("classes", "each"), [(4, 3), (10, 3), (11, 4), (77, 20)])
def test_classes_with_enough_training_texts_are_accepted(tmp_path: Path, classes: int, each: int) -> None:
    rows = [{"text": f"text {n}", "label": f"class {n % classes}"} for n in range(each * classes)]
    texts = load(tmp_path / "x.jsonl", rows)
    assert len(texts.classes) == classes
    few = [note for note in texts.report.notes if "each on average" in note]
    assert bool(few) == (classes == 11)
    assert not few or few[0].startswith("11 classes have 22 different training texts, 2.0 each on average")


# Digests over (id, text, label) of each split: study results on embedded tasks stay comparable while these
# match.
TOY = {
    "toy_sentences": "bcb625f1ba27b16a",
    "toy_articles": "ebb830d86f8fd610",
}
REAL = {
    "movie_sentences": "75a70ca5d62de23a",
    "wiki_articles": "818ea279ac5f0777",
}


def digest_of(task: str) -> str:
    splits = open_task(task).load().splits
    rows = [
        (split, example.id, example.text, example.label)
        for split in sorted(splits)
        for example in splits[split]
    ]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


@pytest.mark.parametrize("task", TOY)
def test_toy_task_splits_are_unchanged(task: str) -> None:
    assert digest_of(task) == TOY[task]


@pytest.mark.slow
@pytest.mark.parametrize("task", REAL)
def test_embedded_task_splits_are_unchanged(task: str) -> None:
    """Requires network access: downloads the text asset."""
    assert digest_of(task) == REAL[task]
