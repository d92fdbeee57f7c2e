"""User files are read correctly, or rejected with row and remedy; skipped rows are counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bitrank_data import DataError, Texts, open_task, tokenise
from bitrank_data.splitting import text_key

TEXTS = [f"sentence number {n}, of a film" for n in range(40)]
LABELS = [n % 2 for n in range(40)]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
PAIRS = sorted(zip(TEXTS, LABELS, strict=True))


def csv_of(separator: str = ",", end: str = "\n") -> str:
    quoted = [f'"{row["text"]}"{separator}{row["label"]}{end}' for row in ROWS]
    return "".join([f"text{separator}label{end}", *quoted])


def jsonl_of(rows: list[dict], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def changed(**values: object) -> list[dict]:
    """All rows with row 5 changed; the value ``...`` removes a key."""
    fifth = {key: value for key, value in {**ROWS[4], **values}.items() if value is not ...}
    return [*ROWS[:4], fifth, *ROWS[5:]]


def labelled(labels: list) -> list[dict]:
    return [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]


def load(path: Path, content: bytes | str) -> Texts:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_task(str(path)).load()


def pairs_of(texts: Texts) -> list[tuple[str, int | None]]:
    return sorted((example.text, example.label) for part in texts.splits.values() for example in part)


SAME = {
    "plain.csv": csv_of(),
    "bom.csv": csv_of(end="\r\n").encode("utf-8-sig"),
    "semicolons.csv": csv_of(";"),
    "tabs.csv": csv_of("\t"),
    "utf16.csv": csv_of().encode("utf-16"),
    "blank-lines.csv": csv_of(end="\n\n"),
    "bom.jsonl": jsonl_of(ROWS).encode("utf-8-sig"),
    "crlf.jsonl": jsonl_of(ROWS, "\r\n"),
    "array.jsonl": json.dumps(ROWS),
    "array-on-many-lines.jsonl": json.dumps(ROWS, indent=1),
    "whole-floats.jsonl": jsonl_of([{**row, "label": float(row["label"])} for row in ROWS]),
}


@pytest.mark.parametrize("name", SAME)
def test_equivalent_files_give_the_same_task(tmp_path: Path, name: str) -> None:
    texts = load(tmp_path / name, SAME[name])
    assert texts.kind == "classification" and texts.classes == ("0", "1")
    assert pairs_of(texts) == PAIRS
    assert texts.splits == load(tmp_path / "reference.jsonl", jsonl_of(ROWS)).splits


def test_numbers_that_are_equal_as_floats_are_classes_of_their_own(tmp_path: Path) -> None:
    ids = [12345678901234568, 12345678901234567]
    for name, content in (
        ("x.jsonl", jsonl_of(labelled(ids * 20))),
        ("x.csv", csv_of().replace(",0\n", f",{ids[0]}\n").replace(",1\n", f",{ids[1]}\n")),
    ):
        assert load(tmp_path / name, content).classes == (str(ids[1]), str(ids[0]))


def test_unicode_line_separators_stay_inside_a_json_text(tmp_path: Path) -> None:
    odd = "one \u2028 two \u2029 three \x85 four \x0b five \x1c six"
    texts = load(tmp_path / "x.jsonl", jsonl_of(changed(text=odd)))
    assert (odd, 0) in pairs_of(texts) and len(pairs_of(texts)) == 40


def test_quoted_fields_keep_separators_quotes_and_line_breaks(tmp_path: Path) -> None:
    content = csv_of().replace("sentence number 4,", 'he said ""no"", and\nleft')
    assert ('he said "no", and\nleft of a film', 0) in pairs_of(load(tmp_path / "x.csv", content))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_text_may_exceed_the_default_csv_field_limit(tmp_path: Path, suffix: str) -> None:
    long = " ".join(["the"] * 70_000)
    rows = changed(text=long)
    content = jsonl_of(rows) if suffix == "jsonl" else csv_of().replace(TEXTS[4], long)
    assert (long, 0) in pairs_of(load(tmp_path / f"x.{suffix}", content))


REFUSED = {
    "unquoted.csv": (
        csv_of().replace('"', ""),
        r"row 1 \(line 2\): expected 2 fields.*got 3\. Put a field .* in double quotes",
    ),
    "unquoted-later.csv": (
        csv_of().replace('"' + TEXTS[8] + '"', TEXTS[8]),
        r"row 9 \(line 10\): expected 2 fields.*got 3",
    ),
    "short.csv": (
        csv_of().replace(f'"{TEXTS[5]}",1', "short"),
        r"row 6 \(line 7\): expected 2 fields.*got 1\. Give the missing",
    ),
    "open-quote.csv": (
        csv_of().replace(TEXTS[39] + '"', TEXTS[39]),
        r"a quote that opens in row 40 \(line 41\) is never closed",
    ),
    "stray-quote.csv": (
        csv_of().replace(TEXTS[3], 'a "quote" inside'),
        r"row 4 \(line 5\) has a quote out of place.*double the quotes",
    ),
    "latin1.csv": (
        csv_of().replace(TEXTS[2], "café").encode("latin-1"),
        r"not UTF-8: line 4 has the byte 0xe9.*iconv",
    ),
    "broken-utf16.csv": (csv_of().encode("utf-16")[:-1], "begins with the mark of utf-16"),
    "nul.csv": (csv_of().replace("number 3,", "number\0 3,"), "line 5 has a NUL character"),
    "no-header.csv": (
        csv_of().split("\n", 1)[1],
        "no column 'text'; found sentence number 0.*add a header line",
    ),
    "header-only.csv": ("text,label\n", "0 rows; at least 10"),
    "empty.csv": ("", "0 rows: it is empty. Expected a header"),
    "empty.jsonl": ("\n\n", "0 rows: it is empty"),
    "two-texts.csv": (
        "text,label,text\n" + "a,1,b\n" * 20,
        r"two columns 'text' \(found text, label, text\); rename or remove one",
    ),
    "two-labels.csv": ("text,label,label\n" + "a,1,2\n" * 20, "two columns 'label'"),
    "two-keys.jsonl": (
        '{"text": "a", "label": 1, "label": 2}\n' * 20,
        "line 1: an object has two values for 'label'",
    ),
    "Label.jsonl": (
        jsonl_of([{"text": t, "Label": 1} for t in TEXTS]),
        "a column 'Label' but none called 'label'; found text, Label",
    ),
    "labels.jsonl": (
        jsonl_of([{"text": t, "labels": 1} for t in TEXTS]),
        "rename 'labels' to 'label' or name it with --label-column; for language modelling remove it",
    ),
    "spaced.csv": (
        csv_of().replace("text,label", "text, label"),
        "a column ' label' but none called 'label'",
    ),
    "Text.csv": (
        csv_of().replace("text,label", "Text,label"),
        "no column 'text'; found Text, label.*rename 'Text' to 'text'",
    ),
    "no-label-first.jsonl": (jsonl_of([{"text": "a"}, *ROWS]), r"row 1 \(line 1\) has no label"),
    "no-label-later.jsonl": (
        jsonl_of(changed(label=...)),
        r"row 5 \(line 5\) has no label.*remove the column 'label'",
    ),
    "null-label.jsonl": (jsonl_of(changed(label=None)), r"row 5 \(line 5\) has no label"),
    "nan-label.jsonl": (jsonl_of(changed(label=float("nan"))), r"row 5 \(line 5\) has no label"),
    "blank-label.csv": (
        csv_of().replace('number 4, of a film",0', 'number 4, of a film",'),
        r"row 5 \(line 6\) has no label",
    ),
    "nan-text-label.csv": (
        csv_of().replace('number 4, of a film",0', 'number 4, of a film",nan'),
        r"row 5 \(line 6\) has no label",
    ),
    "infinite.jsonl": (jsonl_of(changed(label=float("inf"))), r"row 5 \(line 5\) has the label inf"),
    "multi-label.jsonl": (
        jsonl_of(changed(label=["a", "b"])),
        r"label of row 5 \(line 5\) is a list of labels; multi-label",
    ),
    "surrogate-label.jsonl": (
        jsonl_of(changed(label="\ud800")).encode("ascii", "backslashreplace"),
        r"label of row 5 \(line 5\) has half of a surrogate pair",
    ),
    "struct-label.jsonl": (jsonl_of(changed(label={"a": 1})), r"label of row 5 \(line 5\) is of type dict"),
    "regression.jsonl": (
        jsonl_of(labelled([n / 7 for n in range(40)])),
        r"40 different numbers, with fractions \(row 2 .*bin them",
    ),
    "case.jsonl": (
        jsonl_of(labelled(["pos", "neg", "Pos", "neg"] * 10)),
        r"'pos' \(row 1 .*\) and 'Pos' \(row 3 .*differ in spelling",
    ),
    "zeros.csv": (
        csv_of().replace('number 4, of a film",0', 'number 4, of a film",00'),
        "'0' .* and '00' .*differ in spelling",
    ),
    "one-class.jsonl": (jsonl_of(labelled([1] * 40)), "two classes or more, every label is '1'"),
    "rare.jsonl": (
        jsonl_of(changed(label="rare")),
        r"class 'rare' has 1 different texts \(the first in row 5 .*3 or more are needed",
    ),
    "text-is-number.jsonl": (
        jsonl_of(changed(text=1.5)),
        r"text of row 5 \(line 5\) is 1.5, of type float, expected text",
    ),
    "text-is-chat.jsonl": (
        jsonl_of(changed(text=[{"role": "user"}])),
        r"text of row 5 .* is a list.*name the column 'messages'",
    ),
    "text-is-struct.jsonl": (
        jsonl_of(changed(text={"a": "b"})),
        r"text of row 5 \(line 5\) is an object with a, expected text",
    ),
    "surrogate.jsonl": (
        json.dumps({"text": "\ud800"}) + "\n" + jsonl_of(ROWS),
        r"text of row 1 .* half of a surrogate pair",
    ),
    "escaped-nul.jsonl": (jsonl_of(changed(text="a\0b")), r"text of row 5 \(line 5\) has a NUL character"),
    "bare-list.jsonl": ('["a", 1]\n' * 20, r"row 1 \(line 1\) is no JSON object but an array"),
    "array-of-texts.jsonl": (json.dumps(TEXTS), "row 1 is no JSON object but a string"),
    "deep.jsonl": ("[" * 100_000, "cannot be read as jsonl"),
    "messages.jsonl": (
        jsonl_of([{"messages": []}] * 20),
        r"messages\.jsonl has 0 rows to learn from \(20 with no messages; the first: row 1 \(line 1\)\); at",
    ),
    "completion.jsonl": (
        jsonl_of([{"prompt": "", "completion": ""}] * 20),
        r"has 0 rows to learn from \(20 with no prompt; the first: row 1",
    ),
    "alpaca.jsonl": (
        jsonl_of([{"instruction": "", "input": "", "output": ""}] * 20),
        r"has 0 rows to learn from \(20 with no instruction; the first: row 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_ambiguous_file_raises_data_error_with_its_row(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        open_task(str(tmp_path / name))


def test_folder_without_split_files_raises_data_error(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(DataError, match=r"x\.csv is a folder without a file for train: a folder needs"):
        open_task(str(tmp_path / "x.csv"))


def parquet(path: Path, **columns: object) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_invalid_parquet_values_raise_data_error(tmp_path: Path) -> None:
    missing = pa.array([float(label) if n != 4 else None for n, label in enumerate(LABELS)])
    with pytest.raises(DataError, match="row 5 has no label"):
        open_task(parquet(tmp_path / "null.parquet", text=TEXTS, label=missing))
    with pytest.raises(DataError, match="the text of row 1 is bytes, expected text; decode"):
        open_task(
            parquet(tmp_path / "bytes.parquet", text=pa.array([t.encode() for t in TEXTS]), label=LABELS)
        )
    with pytest.raises(DataError, match="the label of row 1 is bytes"):
        open_task(parquet(tmp_path / "label.parquet", text=TEXTS, label=pa.array([b"a", b"b"] * 20)))
    with pytest.raises(DataError, match="the text of row 1 is an object with a, expected text"):
        open_task(parquet(tmp_path / "struct.parquet", text=[{"a": t} for t in TEXTS], label=LABELS))
    duplicated = pa.Table.from_arrays([pa.array(TEXTS), pa.array(TEXTS)], names=["text", "text"])
    pq.write_table(duplicated, tmp_path / "duplicated.parquet")
    with pytest.raises(DataError, match="two columns 'text'"):
        open_task(str(tmp_path / "duplicated.parquet"))
    with pytest.raises(DataError, match="0 rows"):
        open_task(parquet(tmp_path / "empty.parquet", text=pa.array([], pa.string())))


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    empty = [None, "", "  \n", "nan", float("nan"), ...]
    rows = [
        *ROWS,
        *({key: value for key, value in (("text", t), ("label", 1)) if value is not ...} for t in empty),
    ]
    texts = load(tmp_path / "x.jsonl", jsonl_of(rows))
    assert pairs_of(texts) == PAIRS, "'None' and 'nan' are not texts"
    assert texts.report.counts["rows"] == 46 and texts.report.counts["rows_without_text"] == 6
    assert "6 of 46 rows have no text and were left out (the first: row 41 (line 41))" in texts.report.notes


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_texts_that_look_like_missing_values_are_kept_and_counted(tmp_path: Path, suffix: str) -> None:
    likes = ["NULL", "None", "NA", "#N/A", "null", "NAN", "N/A", " None "]
    others = ["None of it", "NA NA", "no", "nano", "<NA>", "nan", "NaN"]
    rows = [*ROWS, *({"text": text, "label": 1} for text in [*likes, *others])]
    lines = [f"{json.dumps(row['text'])},{row['label']}\n" for row in rows]
    content = jsonl_of(rows) if suffix == "jsonl" else "".join(["text,label\n", *lines])
    texts = load(tmp_path / f"x.{suffix}", content)
    kept = {text_key(text) for text in [*likes, *others[:4]]}
    assert kept <= {text_key(text) for text, _ in pairs_of(texts)}
    assert texts.report.counts["rows_without_text"] == 3
    note = (
        "8 cells of the column 'text' look like missing values ('NULL', 'None', 'NA', '#N/A', 'null', 'NAN', "
        "'N/A') and were used as they are; where they mean that a value is missing, leave the cells empty"
    )
    assert [found for found in texts.report.notes if "look like" in found] == [note]


def test_labels_that_look_like_missing_values_are_classes_and_counted(tmp_path: Path) -> None:
    texts = load(tmp_path / "x.jsonl", jsonl_of(labelled(["NA", "b"] * 20)))
    assert texts.classes == ("NA", "b")
    assert any(note.startswith("20 cells of the column 'label' look like") for note in texts.report.notes)


def test_too_few_rows_with_text_raise_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"9 rows with text \(31 without\); at least 10"):
        load(tmp_path / "x.jsonl", jsonl_of([*ROWS[:9], *[{"text": None, "label": 1}] * 31]))


def test_unused_columns_are_reported(tmp_path: Path) -> None:
    rows = [{"id": n, **row, "label_text": "x"} for n, row in enumerate(ROWS)]
    assert (
        "columns that are not used: id, label_text" in load(tmp_path / "x.jsonl", jsonl_of(rows)).report.notes
    )


def test_integer_and_whole_float_labels_are_one_class(tmp_path: Path) -> None:
    mixed = [float(label) if n % 3 else label for n, label in enumerate(LABELS)]
    texts = load(tmp_path / "x.jsonl", jsonl_of(labelled(mixed)))
    assert texts.classes == ("0", "1") and pairs_of(texts) == PAIRS
    assert "1.0 and 1 are one class, '1'" in texts.report.notes
    written = csv_of().replace('number 4, of a film",0', 'number 4, of a film",0.0')
    assert load(tmp_path / "x.csv", written).classes == ("0", "1")


def test_surrounding_space_does_not_change_the_class(tmp_path: Path) -> None:
    texts = load(tmp_path / "x.jsonl", jsonl_of(labelled(["pos", "neg", " pos", "neg"] * 10)))
    assert texts.classes == ("neg", "pos")
    assert "'pos' and ' pos' are one class, 'pos'" in texts.report.notes


def test_few_fractional_labels_are_classes(tmp_path: Path) -> None:
    texts = load(tmp_path / "x.jsonl", jsonl_of(labelled([10.0, 0.5, 1.5, 2] * 10)))
    assert texts.classes == ("0.5", "1.5", "2", "10")


def test_label_minus_one_beside_zero_is_reported(tmp_path: Path) -> None:
    texts = load(tmp_path / "x.jsonl", jsonl_of(labelled([-1, 0, 1, 1] * 10)))
    assert texts.classes == ("-1", "0", "1")
    assert any("label -1 (10 rows) is trained on as a class" in note for note in texts.report.notes)


def test_booleans_are_classes(tmp_path: Path) -> None:
    assert load(tmp_path / "x.jsonl", jsonl_of(labelled([False, True] * 20))).classes == ("False", "True")


def test_reopened_file_keeps_the_content_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    first = load(path, jsonl_of(ROWS))
    again = open_task(str(path))
    assert again.kind == "classification" and again.load() == first
    path.write_text(jsonl_of(changed(text="another")))
    assert again.load() == first, "the texts are those of the content that was opened"
    assert open_task(str(path)).fingerprint() != again.fingerprint()


def test_file_that_changed_after_its_cache_was_lost_raises_data_error(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(jsonl_of(ROWS))
    source = open_task(str(path))
    path.write_text(jsonl_of(changed(text="another")))
    shutil.rmtree(cache / "files")
    with pytest.raises(DataError, match="was changed while it was in use"):
        source.load()


LONG = ("the film " + "x" * 1000 + " ") * 10_000  # ten megabytes in one line


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_a_line_of_ten_megabytes_is_read_whole(tmp_path: Path, suffix: str) -> None:
    rows = changed(text=LONG)
    contents = {"jsonl": jsonl_of(rows), "csv": csv_of().replace(TEXTS[4], LONG), "json": json.dumps(rows)}
    assert len(LONG) > 10_000_000
    assert (LONG, 0) in pairs_of(load(tmp_path / f"x.{suffix}", contents[suffix]))


@pytest.mark.slow
def test_a_line_of_ten_megabytes_is_cut_and_counted(tmp_path: Path, tokenizer: object) -> None:
    load(tmp_path / "x.jsonl", jsonl_of(changed(text=LONG)))
    task = tokenise(open_task(str(tmp_path / "x.jsonl")), tokenizer, 16)
    assert "1 of 40 texts are longer than max_length 16 and were cut there" in task.report.notes


def test_ten_thousand_classes_are_split_class_by_class(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": f"class {n % 10_000}"} for n in range(40_000)]
    texts = load(tmp_path / "x.jsonl", jsonl_of(rows))
    assert len(texts.classes) == 10_000
    assert {split: len(part) for split, part in texts.splits.items()} == {
        "train": 20_000,
        "validation": 10_000,
        "test": 10_000,
    }


def test_one_class_is_refused_with_what_is_possible(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "good"} for n in range(40)]
    message = "x.jsonl: classification needs two classes or more, every label is 'good'. Add examples"
    with pytest.raises(DataError, match=message):
        load(tmp_path / "x.jsonl", jsonl_of(rows))


def test_a_csv_file_may_begin_with_a_long_field(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("x" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"long\.csv"):
        open_task(str(path))


def test_lines_of_spaces_before_the_header_are_skipped(tmp_path: Path) -> None:
    assert pairs_of(load(tmp_path / "x.csv", "   \n" + csv_of())) == PAIRS
