"""Tokens are cached, complete, and rebuilt when the cache is damaged."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bitrank_data import DataError, Example, Source, Texts, TokenisedTask, damaged, open_task, tokenise
from bitrank_data.conversations import dialogue
from bitrank_data.tokens import added_tokens
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast


def test_classification_keeps_one_sequence_per_example(tokenizer) -> None:
    source = open_task("toy_sentences")
    texts, task = source.load(), tokenise(source, tokenizer, 8)
    for name, split in task.splits.items():
        assert split.ids == [e.id for e in texts.splits[name]]
        assert split.labels_N.tolist() == [e.label for e in texts.splits[name]]
        assert split.lengths_N.max() <= 8
    first = texts.splits["test"][0]
    assert tokenizer.decode(task.splits["test"].sequence(0)) == " ".join(first.text.split()[:8])


def test_windows_contain_every_token_of_a_document(tokenizer) -> None:
    source = open_task("toy_articles")
    texts, task = source.load(), tokenise(source, tokenizer, 16)
    split = task.splits["test"]
    for example in texts.splits["test"]:
        windows = [split.sequence(i) for i, owner in enumerate(split.ids) if owner == example.id]
        whole = tokenizer(example.text, add_special_tokens=False)["input_ids"]
        joined = np.concatenate(windows).tolist()
        assert joined == whole[: len(joined)] and len(whole) - len(joined) <= 1
        assert all(len(w) == 16 for w in windows[:-1])


def test_splits_share_no_document() -> None:
    for name in ("toy_sentences", "toy_articles"):
        splits = open_task(name).load().splits
        ids = [example.id for part in splits.values() for example in part]
        assert len(ids) == len(set(ids))


def test_second_call_reads_the_cache(tokenizer) -> None:
    source = open_task("toy_articles")
    first = tokenise(source, tokenizer, 16)
    second = tokenise(replace(source, load=_never), tokenizer, 16)
    assert np.array_equal(first.splits["train"].tokens, second.splits["train"].tokens)
    with pytest.raises(AssertionError, match="loaded again"):
        tokenise(replace(source, load=_never), tokenizer, 17)


def test_cache_key_does_not_depend_on_earlier_tokenizer_calls(tokenizer, cache) -> None:
    for length in (8, 12, 8):
        tokenise(open_task("toy_sentences"), tokenizer, length)
    assert len(list((cache / "tokens").glob("toy_sentences-*"))) == 2


def _never() -> Texts:
    raise AssertionError("loaded again")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "meta"])
def test_damaged_cache_is_detected_and_rebuilt(tokenizer, cache, damage: str) -> None:
    source = open_task("toy_sentences")
    expected = tokenise(source, tokenizer, 8).splits["train"].tokens.copy()
    (place,) = (cache / "tokens").glob("toy_sentences-*")
    path = place / "train.tokens.int32"
    blob = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(blob[:-5])
    elif damage == "flip":
        path.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    elif damage == "remove":
        path.unlink()
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


def test_concurrent_processes_build_one_cache(tokenizer, cache) -> None:
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


def test_task_without_text_raises_data_error(tokenizer) -> None:
    empty = Texts("classification", {"train": [], "validation": [], "test": []}, ("a", "b"))
    with pytest.raises(DataError, match="no text left for train"):
        tokenise(Source("empty", "classification", lambda: "0", lambda: empty), tokenizer, 8)


def test_unwritable_cache_raises_data_error_with_remedy(tokenizer, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="BITRANK_CACHE"):
        tokenise(open_task("toy_articles"), tokenizer, 8)


def test_equal_examples_compare_equal() -> None:
    assert Example("a", "b") == Example("a", "b", None)


def with_special(template: str) -> PreTrainedTokenizerFast:
    """Word tokenizer that adds special tokens by ``template``; [BOS] is 1 and [EOS] is 2."""
    words = Tokenizer(
        WordLevel(
            {word: n for n, word in enumerate(["[UNK]", "[BOS]", "[EOS]", "a", "b", "c"])}, unk_token="[UNK]"
        )
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]", pad_token="[EOS]"
    )


def source_of(*texts: str, kind: str = "language-modelling") -> Source:
    label = 0 if kind == "classification" else None
    examples = [Example(str(n), text, label) for n, text in enumerate(texts)]
    splits = {"train": examples, "validation": examples, "test": examples}
    fingerprint = " ".join(texts)
    return Source(
        "mine", kind, lambda: fingerprint, lambda: Texts(kind, splits, ("only",) if label == 0 else ())
    )  # type: ignore[arg-type]


def sequences(task: TokenisedTask, split: str = "test") -> list[list[int]]:
    return [task.splits[split].sequence(n).tolist() for n in range(len(task.splits[split]))]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("$A", [[3, 4, 5, 3], [4, 5, 3, 4]]),
        ("[BOS] $A", [[1, 3, 4, 5], [1, 3, 4, 5], [1, 3, 4, 5]]),
        ("[BOS] $A [EOS]", [[1, 3, 4, 5], [1, 3, 4, 5], [1, 3, 4, 5], [1, 2]]),
        ("$A [EOS]", [[3, 4, 5, 3], [4, 5, 3, 4], [5, 2]]),
    ],
)
def test_every_window_begins_with_the_tokenizers_bos(template: str, expected: list[list[int]]) -> None:
    task = tokenise(source_of("a b c a b c a b c"), with_special(template), 4)
    assert sequences(task) == expected


def test_with_bos_every_document_token_is_predicted_once() -> None:
    words = "a b c b a c c a b b a"
    for length in range(2, 14):
        task = tokenise(source_of(words), with_special("[BOS] $A"), length)
        targets = [token for window in sequences(task) for token in window[1:]]
        assert targets == with_special("$A")(words)["input_ids"]
        assert max(task.splits["test"].lengths_N) <= length


def test_special_tokens_false_adds_none() -> None:
    tokenizer = with_special("[BOS] $A [EOS]")
    task = tokenise(source_of("a b c a b"), tokenizer, 3, special_tokens=False)
    assert sequences(task) == [[3, 4, 5], [3, 4]]
    plain = tokenise(source_of("a b", kind="classification"), tokenizer, 8, special_tokens=False)
    assert sequences(plain) == [[3, 4]]


def test_cache_key_contains_special_tokens_and_truncation(cache: Path) -> None:
    source, tokenizer = source_of("a b c a b", kind="classification"), with_special("[BOS] $A")
    for special in (True, False, True):
        tokenise(source, tokenizer, 4, special_tokens=special)
    assert len(list((cache / "tokens").glob("mine-*"))) == 2
    tokenizer.truncation_side = "left"
    assert sequences(tokenise(source, tokenizer, 4)) == [[1, 5, 3, 4]]
    tokenise(source, with_special("$A"), 4)
    assert len(list((cache / "tokens").glob("mine-*"))) == 4


def test_truncated_texts_are_counted() -> None:
    task = tokenise(source_of("a b c a", "a b", kind="classification"), with_special("[BOS] $A [EOS]"), 4)
    assert sequences(task) == [[1, 3, 4, 2], [1, 3, 4, 2]]
    assert task.report.counts["texts_cut"] == 3 and task.report.counts["texts"] == 6, (
        "one of two in each of three splits"
    )
    assert task.report.notes == ("3 of 6 texts are longer than max_length 4 and were cut there",)


def test_texts_without_targets_are_counted() -> None:
    task = tokenise(source_of("a b", "a"), with_special("$A"), 4)
    assert sequences(task) == [[3, 4]]
    assert task.report.counts["texts_without_tokens"] == 3
    assert sequences(tokenise(source_of("a b", "a"), with_special("[BOS] $A"), 4)) == [[1, 3, 4], [1, 3]]


def test_max_length_without_space_for_text_raises_data_error() -> None:
    with pytest.raises(
        DataError, match="max_length 2 leaves no token for text beside 2 special tokens; give 3 or more"
    ):
        tokenise(source_of("a b"), with_special("[BOS] $A [EOS]"), 2)


def test_added_tokens_are_detected_without_a_token_for_the_default_probe(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    words = Tokenizer(BPE({"[BOS]": 0, "[EOS]": 1, "w": 2}, []))  # drops characters without a token
    words.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 0), ("[EOS]", 1)]
    )
    assert added_tokens(
        PreTrainedTokenizerFast(tokenizer_object=words, bos_token="[BOS]", eos_token="[EOS]")
    ) == ((0,), (1,))
    assert added_tokens(tokenizer) == ((), ())


def test_split_without_a_class_raises_data_error(tokenizer: PreTrainedTokenizerFast) -> None:
    both = [Example("0", "good film", 1), Example("1", "bad film", 0)]
    texts = Texts("classification", {"train": both, "validation": both[:1], "test": both}, ("no", "yes"))
    with pytest.raises(DataError, match="the class 'no' has no text in validation"):
        tokenise(Source("mine", "classification", lambda: "0", lambda: texts), tokenizer, 8)


def special(**names: str) -> PreTrainedTokenizerFast:
    """Word tokenizer that adds no tokens; <a> and <b> are special, and ``names`` gives their use."""
    vocabulary = {word: n for n, word in enumerate(["[UNK]", "<a>", "<b>", "a", "b"])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["[UNK]", "<a>", "<b>"])
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **names)


@pytest.mark.parametrize("role", ["bos_token", "mask_token", "pad_token", "eos_token", "sep_token"])
def test_cache_key_contains_every_special_token(cache: Path, role: str) -> None:
    for name in ("<a>", "<b>", "<a>"):
        tokenise(source_of("a b"), special(**{role: name}), 4)
    assert len(list((cache / "tokens").glob("mine-*"))) == 2


def test_a_changed_bos_token_gives_the_texts_of_the_template_with_it(tmp_path: Path) -> None:
    first = special(bos_token="<a>")
    first.chat_template = "{{ bos_token }}{% for m in messages %} {{ m.content }} {% endfor %}"
    first.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(file.read_text().replace("<a>", "<b>"))
    second = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    dialogues = [dialogue("0", None, [("user", "a"), ("assistant", "b")], "chat")]
    texts = Texts("instruction-following", dict.fromkeys(("train", "validation", "test"), dialogues))
    source = Source("mine", texts.kind, lambda: "0", lambda: texts)
    assert sequences(tokenise(source, first, 8)) == [[1, 3, 4]]
    assert sequences(tokenise(source, second, 8)) == [[2, 3, 4]]


def test_splits_with_more_than_a_fifth_of_unknown_tokens_are_reported() -> None:
    texts = {
        "train": [Example("0", "кот a b b"), Example("1", "a b a b")],
        "validation": [Example("2", "кот a b b b")],
        "test": [Example("3", "кот спит на a")],
    }
    source = Source("mine", "language-modelling", lambda: "0", lambda: Texts("language-modelling", texts))
    assert tokenise(source, special(), 8).report.notes == (
        "many tokens are unknown to the tokenizer ([UNK]): 75 % of test; the model cannot tell these words "
        "apart; give one whose tokenizer knows the language of the texts",
    )


def test_an_unknown_token_with_another_use_is_not_counted() -> None:
    assert tokenise(source_of("кот a"), special(eos_token="[UNK]"), 8).report.notes == ()
