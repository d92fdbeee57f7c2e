"""Splits that the user made are kept; a missing validation split is taken from training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank_data import DataError, FileOptions, Source, open_task, tokenise

ROWS = [{"text": f"film {n} is good", "label": n % 2} for n in range(40)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sizes(source: Source) -> dict[str, int]:
    return {split: len(part) for split, part in source.load().splits.items()}


def test_files_of_a_folder_are_the_splits(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    write(folder / "train.jsonl", ROWS[:30])
    (folder / "dev.csv").write_text(
        "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in ROWS[30:35])
    )
    write(folder / "test-00000-of-00002.jsonl", ROWS[35:37])
    write(folder / "test-00001-of-00002.jsonl", ROWS[37:])
    write(folder / "notes.jsonl", ROWS)
    texts = open_task(str(folder)).load()
    found = {split: [(e.id, e.text, e.label) for e in part] for split, part in texts.splits.items()}
    for split, rows in {"train": ROWS[:30], "validation": ROWS[30:35], "test": ROWS[35:]}.items():
        expected = [(f"{split}-{n}", row["text"], row["label"]) for n, row in enumerate(rows)]
        assert found[split] == expected
    assert "files that are not used: notes.jsonl" in texts.report.notes


def test_missing_validation_is_split_from_training_by_hash(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    write(folder / "train.jsonl", ROWS)
    write(folder / "test.jsonl", ROWS[:3])
    source = open_task(str(folder))
    assert sizes(source) == {"train": 36, "validation": 4, "test": 3}
    notes = source.load().report.notes
    assert "no validation data were given: 4 of 40 training rows, chosen by hash, validate" in notes
    assert any("texts of test are also in train, as in the files" in note for note in notes)


def test_a_test_file_keeps_all_rows_of_the_file_for_training_and_validation(tmp_path: Path) -> None:
    path, test = write(tmp_path / "x.jsonl", ROWS), write(tmp_path / "more.jsonl", ROWS[:2])
    source = open_task(path, options=FileOptions(test_file=test))
    assert sizes(source) == {"train": 36, "validation": 4, "test": 2}
    assert source.fingerprint() != open_task(path).fingerprint()


def test_repeated_rows_of_a_given_test_split_are_kept_and_counted(tmp_path: Path) -> None:
    path, test = write(tmp_path / "x.jsonl", ROWS), write(tmp_path / "y.jsonl", [ROWS[0], ROWS[1], ROWS[0]])
    texts = open_task(path, options=FileOptions(test_file=test)).load()
    assert len(texts.splits["test"]) == 3 and texts.report.counts["test_repeats"] == 1
    assert "1 texts of test repeat another of them; all are kept, as in the files" in texts.report.notes


def folder_of(folder: Path, **splits: list[dict[str, Any]]) -> Source:
    for split, rows in splits.items():
        write(folder / f"{split}.jsonl", rows)
    return open_task(str(folder))


def test_repeated_rows_of_given_splits_are_kept_and_counted_in_each(tmp_path: Path) -> None:
    train, repeated = ROWS[:20], [ROWS[0], *ROWS[:17]]
    texts = folder_of(
        tmp_path / "task", train=[*train, *repeated], validation=ROWS[20:24] * 2, test=ROWS[30:]
    ).load()
    assert [len(texts.splits[split]) for split in ("train", "validation", "test")] == [38, 8, 10]
    repeats = [texts.report.counts[f"{split}_repeats"] for split in ("train", "validation", "test")]
    assert repeats == [18, 4, 0]
    assert "18 texts of train repeat another of them; all are kept, as in the files" in texts.report.notes


def test_repeats_of_a_training_split_without_validation_are_counted_once(tmp_path: Path) -> None:
    texts = folder_of(tmp_path / "task", train=[*ROWS[:30], *ROWS[:5]], test=ROWS[30:]).load()
    assert texts.report.counts["repeated_rows"] == 5
    assert sum(" repeat " in note for note in texts.report.notes) == 1


@pytest.mark.parametrize("has_validation", [True, False])
def test_texts_with_two_labels_in_given_splits_are_kept_counted_and_named(
    tmp_path: Path, has_validation: bool
) -> None:
    train = [*ROWS[:30], {**ROWS[2], "label": 1}]
    test = [*ROWS[30:], {**ROWS[3], "label": 0}]
    others = {"validation": ROWS[20:24]} if has_validation else {}
    texts = folder_of(tmp_path / "task", train=train, test=test, **others).load()
    assert sum(map(len, texts.splits.values())) == 31 + 11 + 4 * has_validation
    assert texts.report.counts["conflicting_texts"] == 2
    (note,) = [note for note in texts.report.notes if "different labels" in note]
    pairs = [
        "row 3 (line 3) of train.jsonl '0' and row 31 (line 31) of train.jsonl '1'",
        "row 4 (line 4) of train.jsonl '1' and row 11 (line 11) of test.jsonl '0'",
    ]
    assert note in [
        f"2 texts have different labels in different rows (such as {pair}); all are kept" for pair in pairs
    ]


def test_a_label_of_the_test_split_alone_is_refused_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS)
    test = write(tmp_path / "y.jsonl", [ROWS[0], {"text": "a film", "label": 7}])
    expected = (
        r"row 2 \(line 2\) of y.jsonl has the label '7', which no training row has \(1 such rows in test\)"
    )
    with pytest.raises(DataError, match=expected):
        open_task(path, options=FileOptions(test_file=test))


def test_given_split_may_lack_a_class_which_is_reported(tmp_path: Path, tokenizer: Any) -> None:
    path, test = write(tmp_path / "x.jsonl", ROWS), write(tmp_path / "y.jsonl", [ROWS[0]])
    task = tokenise(open_task(path, options=FileOptions(test_file=test)), tokenizer, 8)
    assert "1 of 2 classes have no text in test (such as '1')" in task.report.notes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.jsonl": ROWS}, "is a folder without a file for test: a folder needs .*found train.jsonl"),
        ({"data.jsonl": ROWS}, "without a file for train"),
        ({}, r"found no \.csv, \.tsv"),
        (
            {"train.jsonl": ROWS, "test.jsonl": [{"text": "a", "stars": 1}]},
            r"test.jsonl has no column 'label', which train.jsonl has \(found text, stars\)",
        ),
        ({"train.jsonl": ROWS, "test.jsonl": [{"text": "", "label": 1}]}, "the test split has no rows"),
    ],
)
def test_incomplete_folders_are_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    for name, rows in files.items():
        write(folder / name, rows)
    with pytest.raises(DataError, match=message):
        open_task(str(folder))


def test_a_folder_with_a_test_split_takes_no_test_file(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    write(folder / "train.jsonl", ROWS)
    test = write(folder / "test.jsonl", ROWS[:2])
    with pytest.raises(DataError, match="has a test split already"):
        open_task(str(folder), options=FileOptions(test_file=test))


@pytest.mark.parametrize(
    "parts",
    [
        ("-00000-of-00002", "-00001-of-00002"),
        ("-00000-of-00001-6ef3991c06080e14",),
        ("_0", "_1"),
        ("1", "2"),
        (".01", ".02"),
    ],
)
def test_numbered_files_are_parts_of_a_split(tmp_path: Path, parts: tuple[str, ...]) -> None:
    write(tmp_path / "task" / "test.jsonl", ROWS[30:])
    for number, part in enumerate(parts):
        write(tmp_path / "task" / f"train{part}.jsonl", ROWS[number * 15 : number * 15 + 15])
    assert sum(sizes(open_task(str(tmp_path / "task"))).values()) == 15 * len(parts) + 10


def test_files_with_other_words_after_the_name_of_a_split_are_not_used_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    for name in ("train", "valid", "test"):
        write(folder / f"{name}.jsonl", ROWS[:10])
    others = [
        "dev-old.jsonl",
        "test.raw.jsonl",
        "test_predictions.jsonl",
        "train-v2.jsonl",
        "train_old.jsonl",
    ]
    for name in others:
        write(folder / name, ROWS)
    source = open_task(str(folder))
    assert sizes(source) == {"train": 10, "validation": 10, "test": 10}
    assert f"files that are not used: {', '.join(others)}" in source.load().report.notes
