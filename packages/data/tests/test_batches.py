"""Batches hold every sequence once, group similar lengths, and depend on the seed only."""

from __future__ import annotations

from itertools import islice

import numpy as np
from bitrank_data import Batching, evaluation_batches, spread_windows, training_batches, training_order
from bitrank_data.batches import training_parts
from bitrank_data.sequences import Piece, pack
from hypothesis import given
from hypothesis import strategies as st


def split_of(lengths: list[int], ids: list[str] | None = None):
    sequences = [Piece(np.arange(length, dtype=np.int32) + 1) for length in lengths]
    return pack(sequences, np.arange(len(lengths)) % 2, ids or [str(n) for n in range(len(lengths))])


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=300),
    st.integers(1, 16),
    st.integers(0, 9),
    st.integers(0, 3),
)
def test_epoch_contains_every_sequence_once(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    order = training_order(np.asarray(lengths), size, seed, epoch)
    assert sorted(np.concatenate(order).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in order)
    again = training_order(np.asarray(lengths), size, seed, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(order, again, strict=True))


@given(st.integers(0, 40))
def test_skip_continues_at_the_same_batch(skip: int) -> None:
    split = split_of([3 + n % 7 for n in range(37)])
    straight = list(islice(training_batches(split, "classification", Batching(0, 4, seed=1)), 45))
    continued = islice(training_batches(split, "classification", Batching(0, 4, seed=1), skip), 45 - skip)
    for a, b in zip(straight[skip:], continued, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=90), *[st.integers(1, 9)] * 2, st.integers(0, 3)
)  # fmt: skip
def test_parts_form_the_whole_batch(
    lengths: list[int], size: int, parts: int, epoch: int
) -> None:  # fmt: skip
    """Exactly ``parts`` per batch, each at most its share, also for the last, smaller batch."""
    whole = training_order(np.asarray(lengths), size, 1, epoch)
    cut = training_parts(np.asarray(lengths), size, 1, epoch, parts)
    assert len(cut) == parts * len(whole)
    assert max(len(part) for part in cut) <= -(-size // parts)
    for number, batch in enumerate(whole):
        assert np.concatenate(cut[parts * number : parts * (number + 1)]).tolist() == batch.tolist()


@given(st.integers(0, 70), st.sampled_from(["classification", "language-modelling"]))
def test_skip_continues_at_the_same_part(skip: int, kind: str) -> None:
    """Nine sequences with batch size eight: the second batch has one sequence and three empty parts."""
    split = split_of([3 + n % 7 for n in range(9)])
    straight = list(islice(training_batches(split, kind, Batching(0, 8, seed=1, parts=4)), 75))
    continued = islice(training_batches(split, kind, Batching(0, 8, seed=1, parts=4), skip), 75 - skip)
    for a, b in zip(straight[skip:], continued, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)
    assert sorted(len(part["index"]) for part in straight[:8]) == [0, 0, 0, 1, 2, 2, 2, 2]
    assert all(part["input_ids"].ndim == 2 for part in straight)


def test_length_grouping_limits_padding() -> None:
    lengths = np.random.default_rng(0).integers(4, 60, 2000)
    batches = list(
        islice(training_batches(split_of(lengths.tolist()), "classification", Batching(0, 16, 0)), 125)
    )
    padded = sum(batch["input_ids"].size for batch in batches)
    assert lengths.sum() / padded > 0.95
    firsts = [batch["input_ids"].shape[1] for batch in batches]
    assert firsts != sorted(firsts)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 300))
def test_evaluation_batches_contain_every_sequence_within_the_limit(lengths: list[int], limit: int) -> None:
    batches = list(evaluation_batches(split_of(lengths), "classification", 0, limit))
    assert sorted(np.concatenate([b["index"] for b in batches]).tolist()) == list(range(len(lengths)))
    assert all(b["input_ids"].size <= limit or len(b["index"]) == 1 for b in batches)


def test_padding_is_masked_and_ignored_as_label() -> None:
    (batch,) = evaluation_batches(split_of([3, 5]), "language-modelling", 9, 100)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, -100, -100]]
    assert batch["index"].tolist() == [1, 0]


def test_spread_windows_are_evenly_spaced_per_document() -> None:
    split = split_of([8] * 10 + [4], ["a"] * 10 + ["b"])
    few = spread_windows(split, 3)
    assert few.ids == ["a", "a", "a", "b"] and len(few) == 4
    assert len(spread_windows(split, 100)) == 11
    cut = split_of([8] * 10 + [4], ["a"] * 11)
    assert len(spread_windows(cut, 100)) == 10, "the last, shorter window is left out"
    assert len(spread_windows(split_of([8, 8], ["a", "a"]), 2)) == 2


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 9), st.integers(1, 300))
def test_padding_to_a_multiple_adds_masked_tokens_only(lengths: list[int], multiple: int, limit: int) -> None:
    split = split_of(lengths)
    for batch in evaluation_batches(split, "language-modelling", 9, limit, multiple):
        rows, width = batch["input_ids"].shape
        longest = max(len(split.sequence(int(index))) for index in batch["index"])
        assert width == min(max(lengths), longest + -longest % multiple), (
            "the next multiple, unless no sequence is that long"
        )
        assert rows * width <= limit or rows == 1
        for row, index in enumerate(batch["index"]):
            sequence = split.sequence(int(index))
            assert batch["input_ids"][row].tolist() == [*sequence.tolist(), *[9] * (width - len(sequence))]
            assert batch["attention_mask"][row].sum() == len(sequence)
    plain, padded = (
        list(islice(training_batches(split, "classification", Batching(0, 4, 3, multiple=m)), 9))
        for m in (1, multiple)
    )
    for before, after in zip(plain, padded, strict=True):
        width = before["input_ids"].shape[1]
        assert before["index"].tolist() == after["index"].tolist()
        assert after["input_ids"].shape[1] == min(max(lengths), width + -width % multiple)
