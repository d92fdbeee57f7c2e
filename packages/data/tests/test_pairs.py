"""Sources and targets: one sequence each, two parts in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitrank_data import (
    EMBEDDED,
    IGNORED,
    SEQUENCE_TO_SEQUENCE,
    Batching,
    Cutting,
    TargetExample,
    data_kind,
    encode_pairs,
    evaluation_batches,
    full_batch,
    open_task,
    tokenise,
    training_batches,
)
from bitrank_data.sequences import pack

END = 3


@pytest.fixture
def ending_tokenizer(tokenizer: Any) -> Any:
    """The word tokenizer with ``is`` (id 3) as the end-of-sequence token."""
    import copy

    made = copy.deepcopy(tokenizer)
    made.eos_token = "is"
    return made


def split_of(pairs: list[tuple[str, str]], tokenizer: Any, max_length: int = 8) -> Any:
    examples = [TargetExample(f"{n}", source, target=target) for n, (source, target) in enumerate(pairs)]
    sequences, cut = encode_pairs(examples, tokenizer, Cutting(max_length))
    pieces = [piece for found in sequences for piece in found]
    return pack(pieces, np.zeros(0), [str(n) for n in range(len(pieces))]), cut


def test_a_sequence_is_prompt_and_completion_with_its_end(ending_tokenizer: Any) -> None:
    split, cut = split_of([("the film", "good"), ("the cast and score", "bad plot")], ending_tokenizer)
    words = ending_tokenizer.convert_ids_to_tokens
    assert words(split.prompt_of(1)) == ["the", "cast", "and", "score"]
    assert words(split.completion_of(1)) == ["bad", "plot", "is"] and cut == 0
    assert split.targets_of(0).tolist() == [IGNORED, IGNORED, *split.completion_of(0).tolist()]


def test_without_an_end_token_a_target_has_only_its_words(tokenizer: Any) -> None:
    split, _ = split_of([("the film", "good")], tokenizer)
    assert tokenizer.convert_ids_to_tokens(split.completion_of(0)) == ["good"]


def test_long_texts_are_cut_counted_and_keep_their_end(ending_tokenizer: Any) -> None:
    long = " ".join(["film"] * 20)
    split, cut = split_of([(long, long), ("the film", "good")], ending_tokenizer, max_length=6)
    assert cut == 1 and len(split.prompt_of(0)) == 6
    # The decoder's input has a start token before the target.
    assert len(split.completion_of(0)) == 5 and split.completion_of(0)[-1] == END


def test_an_example_counts_once_as_cut_whichever_side_is_long(ending_tokenizer: Any) -> None:
    long = " ".join(["film"] * 20)
    pairs = [(long, long), (long, "good"), ("the film", long), ("the film", "good")]
    assert split_of(pairs, ending_tokenizer, max_length=6)[1] == 3


def test_an_example_without_source_or_target_has_no_sequence(ending_tokenizer: Any) -> None:
    split, _ = split_of([("", "good"), ("the film", ""), ("the film", "good")], ending_tokenizer)
    assert len(split) == 1


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_batch_pads_source_and_target_apart(ending_tokenizer: Any, multiple: int) -> None:
    pairs = [("the film", "good bad dull"), ("the cast and score and plot", "bad")]
    split, _ = split_of(pairs, ending_tokenizer)
    (batch,) = evaluation_batches(split, SEQUENCE_TO_SEQUENCE, 0, batch_tokens=100, multiple=multiple)
    rows = batch["index"].tolist()
    for row, index in enumerate(rows):
        source = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        target = batch["labels"][row][batch["labels"][row] != IGNORED]
        assert source.tolist() == split.prompt_of(index).tolist()
        assert target.tolist() == split.completion_of(index).tolist()
    assert batch["input_ids"].shape == (2, 6) and batch["labels"].shape == (2, 4)


def test_widths_of_both_parts_differ_so_that_masks_are_distinguishable(ending_tokenizer: Any) -> None:
    split, _ = split_of([("the film is", "good bad")], ending_tokenizer)
    assert len(split.prompt_of(0)) == len(split.completion_of(0)) == 3
    (batch,) = evaluation_batches(split, SEQUENCE_TO_SEQUENCE, 0, batch_tokens=100)
    assert batch["input_ids"].shape == (1, 3) and batch["labels"].shape == (1, 4)
    assert batch["labels"][0, -1] == IGNORED


def test_the_longer_part_sets_the_size_of_a_batch(ending_tokenizer: Any) -> None:
    pairs = [("the film", "good bad dull poor weak")] * 4
    split, _ = split_of(pairs, ending_tokenizer)
    assert data_kind(SEQUENCE_TO_SEQUENCE).lengths(split).tolist() == [6] * 4
    sizes = [len(b["index"]) for b in evaluation_batches(split, SEQUENCE_TO_SEQUENCE, 0, batch_tokens=12)]
    assert sizes == [2, 2]


@pytest.mark.parametrize("columns", [("source", "target"), ("document", "summary")])
def test_a_file_with_sources_and_targets_is_read_as_this_kind(
    columns: tuple[str, str], tmp_path: Path
) -> None:
    rows = [f"the film {number},good {number}" for number in range(20)]
    (tmp_path / "pairs.csv").write_text("\n".join([",".join(columns), *rows, "an empty target,"]))
    source = open_task(str(tmp_path / "pairs.csv"))
    texts = source.load()
    assert source.kind == SEQUENCE_TO_SEQUENCE
    found = {example.text: example.target for split in texts.splits.values() for example in split}
    assert found == {f"the film {number}": f"good {number}" for number in range(20)}
    assert any("1 of 21 rows have no target" in note for note in texts.report.notes)


def test_the_full_batch_has_the_longest_source_and_target() -> None:
    batch = full_batch(2, 5, SEQUENCE_TO_SEQUENCE)
    assert batch["input_ids"].shape == (2, 5) and (batch["attention_mask"] == 1).all()
    assert (batch["labels"] == 1).sum() == 2 * 4


def test_the_toy_task_is_read_from_the_cache_with_its_targets(ending_tokenizer: Any) -> None:
    for _ in ("written", "read from the cache"):
        task = tokenise(EMBEDDED["toy_summaries"], ending_tokenizer, 32)
        split = task.splits["test"]
        assert len(split) == 32 and len(task.splits["train"]) == 96
        words = ending_tokenizer.convert_ids_to_tokens(split.prompt_of(0))
        noun, word = words[1], words[3]
        assert ending_tokenizer.convert_ids_to_tokens(split.completion_of(0)) == [word, noun, "is"]
    batch = next(training_batches(task.splits["train"], task.kind, Batching(0, 8, seed=0)))
    assert batch["labels"].shape[1] < batch["input_ids"].shape[1]
