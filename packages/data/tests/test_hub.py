"""Hub tasks from small local folders in hub format."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest
from bitrank_data import DataError, cached_commit, hub_snapshot, open_task
from bitrank_data.hub import wikitext_articles


@pytest.fixture
def sst2(tmp_path):
    rows = {
        "sentence": [f"film {n} " for n in range(60)],
        "label": [n % 2 for n in range(60)],
        "idx": list(range(60)),
    }
    part = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict(
        train=part, validation=part.select(range(12)), test=part.select(range(5))
    ).save_to_disk(tmp_path / "sst2")
    return tmp_path / "sst2"


def test_sst2_uses_its_labelled_validation_split_as_test(sst2) -> None:
    texts = open_task("sst2", str(sst2)).load()
    assert {name: len(part) for name, part in texts.splits.items()} == {
        "train": 54,
        "validation": 6,
        "test": 12,
    }
    assert texts.splits["test"][3].id == "sst2-validation-3" and texts.splits["test"][3].text == "film 3"


def test_folder_of_parquet_files_is_a_task(tmp_path) -> None:
    for split in ("train", "validation", "test"):
        rows = {
            "text": [
                " = One = \n",
                " words of one \n",
                " = = Part = = \n",
                " = Two = \n",
                f" words of two, {split} \n",
            ]
        }
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{split}.parquet")
    texts = open_task("wikitext2", str(tmp_path)).load()
    assert [e.id for e in texts.splits["test"]] == ["wikitext2-test-0", "wikitext2-test-1"]
    assert texts.splits["test"][0].text.startswith("= One =") and "Part" in texts.splits["test"][0].text


def test_articles_start_at_level_one_headings() -> None:
    lines = ["\n", " = A = \n", "text\n", " = = B = = \n", "more\n", " = C and D = \n", "end\n"]
    assert [e.text.split("\n")[0].strip() for e in wikitext_articles(lines, "test")] == [
        "= A =",
        "= C and D =",
    ]


@pytest.mark.parametrize("title", ["M", "7", "Öl", "a = b"])
def test_titles_of_any_length_start_an_article(title: str) -> None:
    lines = [" = Alpha = \n", "text\n", f" = {title} = \n", "more\n", " = = Plot = = \n"]
    assert [example.text for example in wikitext_articles(lines, "test")] == [
        "= Alpha = \ntext",
        f"= {title} = \nmore\n = = Plot = =",
    ]


def test_missing_columns_and_folders_raise_data_error(tmp_path, sst2) -> None:
    with pytest.raises(DataError, match="needs the column 'text'"):
        open_task("wikitext2", str(sst2)).load()
    with pytest.raises(DataError, match="local folder"):
        open_task("sst2", str(tmp_path / "empty")).load()


def test_a_task_that_is_not_cached_and_cannot_be_downloaded_names_the_local_copy(hub_cache) -> None:
    for use in ("fingerprint", "load"):
        with pytest.raises(
            DataError, match=r"cannot load sst2 from stanfordnlp/sst2 on the hub: .*--data FOLDER"
        ):
            getattr(open_task("sst2"), use)()


def test_fingerprint_changes_with_the_files(sst2) -> None:
    before = open_task("sst2", str(sst2)).fingerprint()
    (sst2 / "note.txt").write_text("changed")
    assert open_task("sst2", str(sst2)).fingerprint() != before


OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub_cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def store_commit(hub_cache: Path, commit: str, word: str) -> None:
    """Cache ``commit`` of SST-2, whose sentences contain ``word``, as the newest one."""
    folder = hub_cache / "datasets--stanfordnlp--sst2"
    (data := folder / "snapshots" / commit / "data").mkdir(parents=True)
    rows = {"sentence": [f"{word} {n}" for n in range(60)], "label": [n % 2 for n in range(60)]}
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows).to_parquet(data / f"{split}-00000-of-00001.parquet")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)


def test_texts_and_fingerprint_are_those_of_one_commit_also_after_the_repository_moved(hub_cache) -> None:
    store_commit(hub_cache, OLD, "old")
    before = open_task("sst2")
    assert before.fingerprint() == f"hub:stanfordnlp/sst2:data/{{split}}-*.parquet@{OLD}"
    store_commit(hub_cache, NEW, "new")
    for commit, word in ((None, "new"), (NEW, "new"), (OLD, "old")):
        source = open_task("sst2", commit=commit)
        assert source.fingerprint().endswith(f"@{commit or NEW}")
        assert {example.text.split()[0] for example in source.load().splits["train"]} == {word}


def test_a_commit_that_cannot_be_fetched_is_named_with_the_way_out(hub_cache) -> None:
    store_commit(hub_cache, NEW, "new")
    with pytest.raises(DataError, match=f"from stanfordnlp/sst2@{OLD} on the hub: .*--data FOLDER"):
        open_task("sst2", commit=OLD).load()


def test_a_commit_without_the_files_of_a_split_is_refused_by_name(hub_cache) -> None:
    store_commit(hub_cache, NEW, "new")
    for file in hub_cache.rglob("validation-*.parquet"):
        file.unlink()
    with pytest.raises(
        DataError, match=rf"@{NEW} on the hub has no data/validation-\*\.parquet; give a local"
    ):
        open_task("sst2").load()


def test_cached_commit_without_branch_is_the_newest_snapshot(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for age, commit in enumerate(("old", "older")):
        (copy := tmp_path / "models--a--b" / "snapshots" / commit).mkdir(parents=True)
        os.utime(copy, (1000 - age, 1000 - age))
    assert cached_commit("models", "a/b") == "old"
    assert cached_commit("models", "a/c") is None


@pytest.mark.parametrize("cached", [False, True])
def test_a_download_in_a_pipe_is_one_line(tmp_path, monkeypatch, capsys, cached) -> None:
    def download(repository, *, repo_type, tqdm_class, **_):
        assert (repository, repo_type) == ("a/b", "model")
        assert list(tqdm_class(range(3), desc="Fetching")) == [0, 1, 2]
        return tmp_path

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    if cached:
        (tmp_path / "models--a--b" / "snapshots" / NEW).mkdir(parents=True)
    assert hub_snapshot("models", "a/b", None, ["*.json"]) == tmp_path
    shown = "" if cached else "downloading a/b from the Hugging Face hub\n"
    assert capsys.readouterr() == ("", shown)


def test_reading_data_files_shows_no_bar_in_a_pipe(tmp_path, capsys) -> None:
    for split in ("train", "validation", "test"):
        rows = {"text": [" = One = \n", f" words, {split} \n", " = Two = \n", " more \n"]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{split}.parquet")
    capsys.readouterr()
    open_task("wikitext2", str(tmp_path)).load()
    assert capsys.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


def test_copies_of_a_sentence_share_a_split(tmp_path) -> None:
    rows = {"sentence": [f"Film {n % 30} " for n in range(60)], "label": [n % 2 for n in range(60)]}
    part = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict(train=part, validation=part.select(range(12))).save_to_disk(tmp_path / "sst2")
    texts = open_task("sst2", str(tmp_path / "sst2")).load()
    seen = {name: {example.text for example in texts.splits[name]} for name in ("train", "validation")}
    assert not seen["train"] & seen["validation"]
    assert {name: len(part) for name, part in texts.splits.items()} == {
        "train": 54,
        "validation": 6,
        "test": 12,
    }
    assert texts.report.notes == (
        "12 of 12 test sentences are also in the training data, as in the original",
    )


@pytest.mark.parametrize(
    ("row", "message"), [({"label": -1}, "has the label -1"), ({"sentence": None}, "has no sentence")]
)
def test_rows_without_label_or_sentence_raise_data_error(tmp_path, row: dict, message: str) -> None:
    rows = [{"sentence": f"film {n}", "label": n % 2} for n in range(20)]
    rows[4] |= row
    part = datasets.Dataset.from_list(rows)
    datasets.DatasetDict(train=part, validation=part).save_to_disk(tmp_path / "sst2")
    with pytest.raises(DataError, match=f"row 5 of train {message}"):
        open_task("sst2", str(tmp_path / "sst2")).load()


ALPACA, DOLLY = ("input", "output"), ("context", "response")


def instructions(folder, given: str, output: str, count: int = 40) -> str:
    """A folder in hub format with ``count`` instructions, each twice, and one row without an answer."""
    numbers = [*range(count), *range(count)]
    rows = {
        "instruction": [*(f"Name film {n}." for n in numbers), "Name it."],
        given: ["a list" if n % 2 else "" for n in [*numbers, 0]],
        output: [*(f"film {n}" for n in numbers), ""],
    }
    part = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict(train=part).save_to_disk(folder)
    return str(folder)


@pytest.mark.parametrize(("name", "columns"), [("alpaca", ALPACA), ("dolly", DOLLY)])
def test_instructions_are_split_with_their_copies_and_keep_their_input(tmp_path, name, columns) -> None:
    texts = open_task(name, instructions(tmp_path / name, *columns)).load()
    sizes = {split: len(part) for split, part in texts.splits.items()}
    assert sizes == {"test": 8, "validation": 8, "train": 64}
    keys = {split: {example.key for example in part} for split, part in texts.splits.items()}
    assert sum(len(part) for part in keys.values()) == len(set.union(*keys.values())) == 40
    assert {example.given for example in texts.splits["train"]} == {"", "a list"}
    (note,) = texts.report.notes
    assert note.startswith("1 of 81 rows have no instruction or output") and note.endswith("row 81)")


def test_the_subset_of_a_large_file_has_its_stated_sizes(tmp_path) -> None:
    texts = open_task("alpaca", instructions(tmp_path / "alpaca", *ALPACA, count=10_500)).load()
    sizes = {split: len(part) for split, part in texts.splits.items()}
    assert sizes == {"test": 1000, "validation": 200, "train": 2000}


def test_an_instruction_that_is_no_text_is_refused_with_its_row(tmp_path) -> None:
    rows = {"instruction": [1, 2], "input": ["", ""], "output": ["a", "b"]}
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows)).save_to_disk(tmp_path / "alpaca")
    with pytest.raises(DataError, match="alpaca: the instruction of row 1 is 1, of type int, expected text"):
        open_task("alpaca", str(tmp_path / "alpaca")).load()
    with pytest.raises(DataError, match="dolly needs the column 'context' in train"):
        open_task("dolly", str(tmp_path / "alpaca")).load()


@pytest.mark.parametrize("name", ["glue", "my-copies/sst2", "copy.csv"])
def test_a_local_copy_that_is_no_folder_is_refused_before_anything_is_loaded(
    tmp_path, monkeypatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy.csv").write_text("sentence,label")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("loaded from the hub"))
    expected = (
        f"cannot load sst2 from the local folder {name}: (there is no such folder|it is a file); give a"
    )
    with pytest.raises(DataError, match=expected):
        open_task("sst2", name)


def test_a_local_copy_is_read_by_its_absolute_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue").mkdir()
    asked: list[str] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda place: asked.append(place) or {})
    with pytest.raises(DataError, match="sst2 needs a split 'train'"):
        open_task("sst2", "glue").load()
    assert asked == [str(tmp_path / "glue")]
