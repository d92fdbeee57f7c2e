"""A user's file becomes a task; an unusable file raises an error with the reason."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bitrank_data import DataError, open_task

ROWS = [{"text": f"sentence number {n}", "label": "yes" if n % 3 else "no"} for n in range(50)]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [",".join(rows[0])] + [",".join(str(value) for value in row.values()) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_csv_jsonl_and_parquet_give_the_same_task(tmp_path, suffix: str) -> None:
    texts = open_task(str(write(tmp_path / f"mine{suffix}", ROWS))).load()
    assert texts.kind == "classification" and texts.classes == ("no", "yes")
    assert {split: len(part) for split, part in texts.splits.items()} == {
        "train": 40,
        "validation": 5,
        "test": 5,
    }
    everything = sorted((e.text, e.label) for part in texts.splits.values() for e in part)
    assert everything == sorted((row["text"], int(row["label"] == "yes")) for row in ROWS)


def test_file_without_labels_is_language_modelling(tmp_path) -> None:
    source = open_task(str(write(tmp_path / "plain.jsonl", [{"text": f"a b {n}"} for n in range(20)])))
    assert source.kind == "language-modelling" and len(source.load().splits["test"]) == 2


def test_numeric_labels_keep_their_order(tmp_path) -> None:
    rows = [{"text": f"t{n}", "label": n % 11} for n in range(44)]
    assert open_task(str(write(tmp_path / "stars.csv", rows))).load().classes == tuple(
        str(n) for n in range(11)
    )


def test_split_does_not_depend_on_the_file_name(tmp_path) -> None:
    first = open_task(str(write(tmp_path / "a.csv", ROWS))).load()
    again = open_task(str(write(tmp_path / "b.csv", ROWS))).load()
    assert first.splits == again.splits


def test_a_file_may_have_the_longest_name_that_a_disk_takes(tmp_path) -> None:
    name = "a" * 251
    assert open_task(str(write(tmp_path / f"{name}.csv", ROWS))).name == name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"sentence,label\n" + b"a,1\n" * 20, "no column 'text'; found sentence, label"),
        ("x.csv", b"", "0 rows"),
        ("x.csv", b"text,label\n" + b"a,1\n" * 20, "two classes or more, every label is '1'"),
        ("x.csv", b"text,label\n" + b"a,\n" * 20, r"row 1 \(line 2\) has no label"),
        ("x.csv", b"text,label\nbl\xf6d,1\n" * 20, "not UTF-8"),
        ("x.jsonl", b"{not json\n" * 20, "cannot be read as jsonl"),
        ("x.parquet", b"this is no parquet file", "cannot be read as parquet"),
        ("x.txt", b"text", r"expected one of \.csv, \.tsv, \.json, \.jsonl, \.parquet, \.arrow"),
    ],
)
def test_invalid_files_raise_data_error(tmp_path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_task(str(tmp_path / name)).load()


def test_unknown_task_names_raise_data_error() -> None:
    with pytest.raises(DataError, match=r"cannot read nowhere/x\.csv: there is no such file"):
        open_task("nowhere/x.csv")
    with pytest.raises(DataError, match="cannot read /dev/null: it is no regular file"):
        open_task("/dev/null")
    with pytest.raises(DataError, match="unknown task 'movie_sentence'; nearest: movie_sentences"):
        open_task("movie_sentence")
