"""Tokens are cut once, kept whole, and rebuilt when they are broken."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
from bitrank_data import DataError, Example, Source, Texts, damaged, open_task, tokenise


def test_classification_keeps_one_sequence_per_example(tokenizer) -> None:
    source = open_task("toy_sentences")
    texts, task = source.load(), tokenise(source, tokenizer, 8)
    for name, split in task.splits.items():
        assert split.ids == [e.id for e in texts.splits[name]]
        assert split.labels_N.tolist() == [e.label for e in texts.splits[name]]
        assert split.lengths_N.max() <= 8
    first = texts.splits["test"][0]
    assert tokenizer.decode(task.splits["test"].sequence(0)) == " ".join(first.text.split()[:8])


def test_documents_are_cut_into_windows_that_lose_nothing(tokenizer) -> None:
    source = open_task("toy_articles")
    texts, task = source.load(), tokenise(source, tokenizer, 16)
    split = task.splits["test"]
    for example in texts.splits["test"]:
        windows = [split.sequence(i) for i, owner in enumerate(split.ids) if owner == example.id]
        whole = tokenizer(example.text, add_special_tokens=False)["input_ids"]
        joined = np.concatenate(windows).tolist()
        assert joined == whole[: len(joined)] and len(whole) - len(joined) <= 1
        assert all(len(w) == 16 for w in windows[:-1])


def test_no_document_is_in_two_splits() -> None:
    for name in ("toy_sentences", "toy_articles"):
        splits = open_task(name).load().splits
        ids = [example.id for part in splits.values() for example in part]
        assert len(ids) == len(set(ids))


def test_the_second_time_comes_from_the_cache(tokenizer) -> None:
    source = open_task("toy_articles")
    first = tokenise(source, tokenizer, 16)
    second = tokenise(replace(source, load=_never), tokenizer, 16)
    assert np.array_equal(first.splits["train"].tokens, second.splits["train"].tokens)
    with pytest.raises(AssertionError, match="loaded again"):
        tokenise(replace(source, load=_never), tokenizer, 17)


def test_the_key_does_not_depend_on_what_the_tokenizer_did_before(tokenizer, cache) -> None:
    for length in (8, 12, 8):
        tokenise(open_task("toy_sentences"), tokenizer, length)
    assert len(list((cache / "tokens").glob("toy_sentences-*"))) == 2


def _never() -> Texts:
    raise AssertionError("loaded again")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "meta"])
def test_a_broken_cache_is_noticed_and_rebuilt(tokenizer, cache, damage: str) -> None:
    source = open_task("toy_sentences")
    expected = tokenise(source, tokenizer, 8).splits["train"].tokens
    (place,) = (cache / "tokens").glob("toy_sentences-*")
    blob = (place / "tokens.safetensors").read_bytes()
    if damage == "truncate":
        (place / "tokens.safetensors").write_bytes(blob[:-5])
    elif damage == "flip":
        (place / "tokens.safetensors").write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    elif damage == "remove":
        (place / "tokens.safetensors").unlink()
    else:
        (place / "meta.json").write_text("{")
    assert damaged() == [place]
    assert np.array_equal(tokenise(source, tokenizer, 8).splits["train"].tokens, expected)
    assert damaged() == []


def _fill(cache: str, results: object, tokenizer: object) -> None:
    import os

    os.environ["BITRANK_CACHE"] = cache
    task = tokenise(open_task("toy_articles"), tokenizer, 16)
    results.put(int(task.splits["train"].tokens.sum()))


def test_processes_that_fill_it_at_once_do_no_harm(tokenizer, cache) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_fill, args=(str(cache), results, tokenizer)) for _ in range(4)]
    for worker in workers:
        worker.start()
    sums = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(sums) == 1 and all(worker.exitcode == 0 for worker in workers)
    assert len(list((cache / "tokens").glob("toy_articles-*"))) == 1
    assert not list((cache / "tokens").glob(".toy_articles-*.[!l]*"))


def test_a_task_without_text_says_so(tokenizer) -> None:
    empty = Texts("classification", {"train": [], "validation": [], "test": []}, ("a", "b"))
    with pytest.raises(DataError, match="no text left for train"):
        tokenise(Source("empty", "classification", lambda: "0", lambda: empty), tokenizer, 8)


def test_a_read_only_cache_says_what_to_do(tokenizer, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="BITRANK_CACHE"):
        tokenise(open_task("toy_articles"), tokenizer, 8)


def test_examples_are_plain_values() -> None:
    assert Example("a", "b") == Example("a", "b", None)
