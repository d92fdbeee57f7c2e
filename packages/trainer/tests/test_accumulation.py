"""An optimizer step does not depend on the split of its sequences into batches and passes.

The loss is a mean over all units (sequences or predicted tokens) of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitrank_trainer import (
    OBJECTIVES,
    NoHook,
    Objective,
    Row,
    Task,
    TrainError,
    TrainSettings,
    train,
    trainable,
)
from tiny_problem import TinyClassifier, TinyLm
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

Batch = dict[str, np.ndarray]
LENGTHS = (3, 24, 4, 20, 2, 17, 5, 1)  # a text of one token has no target
CUTS = ([8], [4, 4], [2, 2, 2, 2], [1] * 8, [5, 3], [1, 7], [7, 1])


class TokensSquared:
    """Objective with another unit: the squared number of tokens of a sequence."""

    metric, higher_is_better = "acc", True

    def loss(self, model: nn.Module, batch: Batch, device: str) -> Tensor:
        mask_BT = torch.from_numpy(batch["attention_mask"])
        logits_BC = model(torch.from_numpy(batch["input_ids"]), mask_BT).logits
        weight_B = mask_BT.sum(1) ** 2
        return (logits_BC.square().sum(1) * weight_B).sum() / weight_B.sum()

    def weight(self, batch: Batch) -> int:
        return int((batch["attention_mask"].sum(1) ** 2).sum())

    def logits_and_labels(self, model: nn.Module, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def rows(self, model: nn.Module, batch: Batch, device: str) -> list[Row]:
        raise NotImplementedError

    def metrics(self, rows: list[Row]) -> dict[str, float]:
        raise NotImplementedError


def _llama() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, pad_token_id=0, tie_word_embeddings=False, **sizes))
    model.lm_head.requires_grad_(False)  # a frozen head selects the blockwise loss
    return model


def _classifier() -> nn.Module:
    model = TinyClassifier()
    model.dropout.p = 0.0
    return model


KINDS: dict[str, tuple[Callable[[], nn.Module], Objective]] = {
    "classification": (_classifier, OBJECTIVES["classification"]),
    "language modelling": (TinyLm, OBJECTIVES["language-modelling"].plain()),
    "language modelling, fused head": (_llama, OBJECTIVES["language-modelling"]),
    "another objective": (_classifier, TokensSquared()),
}


def sequences(lm: bool) -> list[Batch]:
    """Eight sequences of very different lengths."""
    random = np.random.default_rng(0)
    ids = [random.integers(1, 20, length) for length in LENGTHS]
    labels = ids if lm else [np.asarray(number % 2) for number in range(len(ids))]
    return [
        {"input_ids": row, "attention_mask": np.ones_like(row), "labels": label, "index": np.asarray(number)}
        for number, (row, label) in enumerate(zip(ids, labels, strict=True))
    ]


def collated(rows: Sequence[Batch]) -> Batch:
    width = max(len(row["input_ids"]) for row in rows)

    def wide(key: str, filler: int) -> np.ndarray:
        parts = (row[key] for row in rows)
        return np.stack([np.pad(part, (0, width - len(part)), constant_values=filler) for part in parts])

    lm = rows[0]["labels"].ndim == 1
    return {
        "input_ids": wide("input_ids", 0),
        "attention_mask": wide("attention_mask", 0),
        "labels": wide("labels", -100) if lm else np.stack([row["labels"] for row in rows]),
        "index": np.stack([row["index"] for row in rows]),
    }


def split_batches(rows: Sequence[Batch], cut: Sequence[int]) -> list[Batch]:
    """Consecutive batches of the sizes ``cut``."""
    return [collated(rows[start:stop]) for start, stop in pairwise(np.cumsum([0, *cut]))]


def one_step(kind: str, cut: Sequence[int], folder: Path, **settings: Any) -> tuple[dict[str, float], Tensor]:
    """Metrics of the first step with batches of the sizes ``cut``, and the weights after it."""
    make, objective = KINDS[kind]
    torch.manual_seed(0)
    model, rows = make(), sequences("language" in kind)
    batches = split_batches(rows, cut)
    events: list[dict[str, Any]] = []
    task = Task(objective, lambda skip: iter(batches), lambda: {objective.metric: 0.0, "loss": 0.0})
    plan = TrainSettings(steps=1, learning_rate=1e-3, weight_decay=0.0, accumulation=len(cut), **settings)
    train(model, task, NoHook(), plan, folder, events.append)
    figures = next(event["metrics"] for event in events if event["event"] == "train")
    return figures, torch.cat([p.detach().flatten() for p in trainable(model).values()])


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_batches_equal_one_batch(
    kind: str,
    cut: list[int],
    tmp_path: Path,
) -> None:
    whole, weights = one_step(kind, [8], tmp_path / "whole")
    figures, after = one_step(kind, cut, tmp_path / "cut")
    for name in ("train/loss", "train/grad_norm"):
        assert figures[name] == pytest.approx(whole[name], rel=2e-6), name
    # AdamW divides by the gradient's magnitude, which amplifies rounding where the gradient is close to zero.
    assert torch.allclose(after, weights, atol=2e-5)


@pytest.mark.parametrize("settings", [{"micro_tokens": 30}, {"loss_scale": 1024.0}, {"clip": 0.01}], ids=str)
@pytest.mark.parametrize("cut", [[8], [2, 2, 2, 2], [7, 1]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_step_is_independent_of_micro_batches_loss_scale_and_clipping(
    kind: str,
    cut: list[int],
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Clipping and the division by the loss scale follow after all passes."""
    kept = {"clip": settings["clip"]} if "clip" in settings else {}
    whole, weights = one_step(kind, [8], tmp_path / "whole", **kept)
    figures, after = one_step(kind, cut, tmp_path / "cut", **settings)
    for name in ("train/loss", "train/grad_norm"):
        assert figures[name] == pytest.approx(whole[name], rel=2e-6), name
    assert torch.allclose(after, weights, atol=2e-5)


@pytest.mark.parametrize("kind", ["language modelling", "language modelling, fused head"])
def test_logged_loss_is_nats_per_predicted_token_of_the_step(kind: str, tmp_path: Path) -> None:
    make, objective = KINDS[kind]
    torch.manual_seed(0)
    model, rows = make(), sequences(lm=True)
    with torch.no_grad():
        means = [float(objective.loss(model, collated([row]), "cpu")) for row in rows[:-1]]
    nats = sum(mean * (length - 1) for mean, length in zip(means, LENGTHS[:-1], strict=True))
    figures, _ = one_step(kind, [3, 5], tmp_path)
    assert figures["train/loss"] == pytest.approx(nats / sum(length - 1 for length in LENGTHS), rel=1e-6)


def test_step_without_targets_raises_train_error(tmp_path: Path) -> None:
    alone = collated([sequences(lm=True)[-1]])
    task = Task(OBJECTIVES["language-modelling"], lambda skip: iter([alone, alone]), dict)
    with pytest.raises(TrainError, match="no sequence of this optimizer step has anything to predict"):
        train(TinyLm(), task, NoHook(), TrainSettings(steps=1, accumulation=2), tmp_path, lambda event: None)


class Penalised(NoHook):
    def __init__(self, weight: nn.Parameter) -> None:
        self._weight = weight

    def penalty(self) -> Tensor:
        return 3.0 * self._weight.sum()


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_hook_penalty_counts_once_per_step(cut: list[int], tmp_path: Path) -> None:
    """Like AdaLoRA's orthogonality term: its gradient is added once per step, not per batch."""
    grads: list[Tensor] = []
    model = _classifier()
    weight = nn.Parameter(torch.zeros(4))
    model.register_parameter("apart", weight)

    class Kept(Penalised):
        def after_step(self, step: int) -> None:
            assert weight.grad is not None
            grads.append(weight.grad.clone())

    batches = split_batches(sequences(lm=False), cut)
    task = Task(OBJECTIVES["classification"], lambda skip: iter(batches), lambda: {"acc": 0.0, "loss": 0.0})
    train(
        model,
        task,
        Kept(weight),
        TrainSettings(steps=1, accumulation=len(cut), clip=1e9),
        tmp_path,
        lambda event: None,
    )
    assert torch.equal(grads[0], torch.full((4,), 3.0))
