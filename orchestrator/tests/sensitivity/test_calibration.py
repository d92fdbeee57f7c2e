"""Calibration data: windows of different documents, and held-out sequences that nothing else uses."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from bitrank.models.tokens import tokenised
from bitrank.sensitivity.calibration import (
    calibration,
    calibration_batches,
    calibration_task,
    measured_model,
    one_thread_per_operation,
)
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_data import Batch, TokenisedTask
from bitrank_data.tokens import TokenSplit


def articles(windows: list[int]) -> TokenisedTask:
    """Documents with so many windows each; each window has the token of its own number."""
    count = sum(windows)
    ids = [f"document {number}" for number, some in enumerate(windows) for _ in range(some)]
    split = TokenSplit(np.repeat(np.arange(count), 4), 4 * np.arange(count + 1), np.zeros(0, int), ids)
    return TokenisedTask("articles", "language-modelling", (), {"train": split}, 0)


def windows_of(batches: list[Batch]) -> list[int]:
    return [int(ids_L[0]) for batch in batches for ids_L in batch["input_ids"]]


@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_windows_are_spread_over_documents(count: int) -> None:
    windows = [1, 20, 2, 7, 1]
    task = articles(windows)
    document = dict(enumerate(task.splits["train"].ids))
    chosen = windows_of(calibration_batches(task, count))
    assert len(set(chosen)) == count
    used = Counter(document[window] for window in chosen)
    # One window of each document before a second one of any.
    assert len(used) == min(count, 5) and used.most_common(1)[0][1] <= 1 + (count > 5) + (count > 8)


def test_offsets_continue_the_same_order() -> None:
    task = articles([3, 4, 5])
    whole = windows_of(calibration_batches(task, 8))
    parts = windows_of(calibration_batches(task, 3)) + windows_of(calibration_batches(task, 5, offset=3))
    assert sorted(whole) == sorted(parts)


@pytest.mark.parametrize("name", ["toy_sentences", "toy_articles"])
def test_held_out_sequences_are_measured_on_by_nothing_else(name: str) -> None:
    spec = make_spec(find_profile("smoke"), "B-FP", name)
    ready = calibration(spec)

    def sequences(batches: list[Batch]) -> list[tuple[int, ...]]:
        return [
            tuple(int(token) for token, real in zip(ids_L, mask_L, strict=True) if real)
            for batch in batches
            for ids_L, mask_L in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]

    many, joint, held_out = map(sequences, (ready.many, ready.joint, ready.held_out))
    train = tokenised(spec).splits["train"]
    copies = Counter(tuple(map(int, train.sequence(index))) for index in range(len(train)))
    found = Counter(many) + Counter(held_out)
    assert held_out and not Counter(joint) - Counter(many)
    # Texts that occur several times may be in both; no sequence is used twice.
    assert all(found[sequence] <= copies[sequence] for sequence in found)


def test_new_head_of_a_measurement_does_not_depend_on_the_seed_of_the_run() -> None:
    """Runs with different seeds share the cached tables, whichever measures first."""
    weights = []
    for seed in (0, 7):
        spec = make_spec(find_profile("smoke"), "B-Q4", "toy_sentences", {"seed": seed})
        opened = measured_model(spec, calibration_task(spec))
        assert opened.new_heads
        weights.append(opened.model.get_submodule(opened.heads[-1]).weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize(("device", "workers"), [("cpu", 3), ("mps", 1), ("cuda", 1)])
def test_operations_run_side_by_side_on_a_cpu_only(
    device: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitrank.sensitivity.calibration.usable_threads", lambda: 3)
    before = torch.get_num_threads()
    with one_thread_per_operation(device) as given:
        assert given == workers and torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
