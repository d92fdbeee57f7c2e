"""Micro-batches have the gradient of the whole batch and save less memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitrank_trainer import (
    OBJECTIVES,
    TrainError,
    fitting_tokens,
    kept_bytes,
    longest_sequence,
    micro_batches,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny_problem import batch, batches


@given(rows=st.integers(1, 9), width=st.integers(1, 12), tokens=st.integers(1, 130))
def test_micro_batches_contain_every_row_once_within_the_limit(rows: int, width: int, tokens: int) -> None:
    whole = {
        "input_ids": np.arange(rows * width).reshape(rows, width),
        "attention_mask": np.tri(rows, width, k=width - 1, dtype=np.int64),
        "index": np.arange(rows),
    }
    parts = list(micro_batches(whole, tokens))
    assert np.concatenate([part["index"] for part in parts]).tolist() == list(range(rows))
    assert all(part["input_ids"].size <= max(tokens, width) for part in parts)
    assert sum(int(part["attention_mask"].sum()) for part in parts) == int(whole["attention_mask"].sum())


@pytest.mark.parametrize("kind", ["classification", "language-modelling"])
def test_micro_batch_gradients_sum_to_the_batch_gradient(make, kind: str) -> None:
    lm = kind == "language-modelling"
    model, objective, data = make("lm" if lm else "classification").eval(), OBJECTIVES[kind], batch(3, lm=lm)
    whole = torch.autograd.grad(objective.loss(model, data, "cpu"), list(model.parameters()))
    total = [torch.zeros_like(gradient) for gradient in whole]
    for part in micro_batches(data, 18):
        share = objective.loss(model, part, "cpu") * objective.weight(part) / objective.weight(data)
        for place, gradient in zip(total, torch.autograd.grad(share, list(model.parameters())), strict=True):
            place += gradient
    assert len(list(micro_batches(data, 18))) == 3
    assert all(torch.allclose(got, want, atol=1e-7) for got, want in zip(total, whole, strict=True))


def test_longer_sequences_save_more_bytes(make) -> None:
    model, objective = make("classification"), OBJECTIVES["classification"]
    small, large = (kept_bytes(model, objective, batch(0, length=length), "cpu") for length in (6, 24))
    assert 2 * small < large


def test_fitting_tokens_grow_with_the_limit_and_too_small_limit_raises(make) -> None:
    model, objective = make("classification"), OBJECTIVES["classification"]
    longest = longest_sequence(batches(), 64)
    assert longest["input_ids"].shape == (1, 64)
    enough = fitting_tokens(model, objective, longest, "cpu", 2**36)
    assert enough > 64 and enough % 64 == 0
    assert fitting_tokens(model, objective, longest, "cpu", 2**37) > enough
    with pytest.raises(TrainError, match=r"too small.*Give .* MiB or more"):
        fitting_tokens(model, objective, longest, "cpu", 2**20)


def test_the_longest_of_sequences_with_one_target_has_one_target() -> None:
    first = batch(0, lm=True)
    first["labels"] = np.full_like(first["input_ids"], -100)
    first["labels"][:, 3] = 7
    longest = longest_sequence(iter([first]), 64)
    assert longest["labels"].shape == (1, 64) and longest["labels"][longest["labels"] != -100].tolist() == [7]
