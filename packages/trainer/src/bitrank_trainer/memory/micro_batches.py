"""Passes small enough for the memory at hand: a batch is cut into micro-batches whose gradients add up to the whole batch's.

What a pass keeps is measured, not modelled: the tensors of one sequence's graph are counted. What its backward pass makes and drops on
top is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from bitrank_trainer.errors import TrainError
from bitrank_trainer.memory.meters import resident_bytes
from bitrank_trainer.objectives import Batch, Objective
from bitrank_trainer.optimizer import trainable

_PASSING = (
    3 * 2**25
)  # bytes of what a pass makes and drops, mostly one block of logits in fp32 and in 16 bits; tests make the former twice
_SLACK = 1.25  # what allocators take above the tensors they serve
_LATER = 12  # bytes a trainable number takes after the first step: its gradient and two moments


def micro_batches(batch: Batch, tokens: int | None) -> Iterator[Batch]:
    """``batch`` in parts of at most ``tokens`` padded tokens (one sequence at least), each as wide as its longest sequence."""
    rows, width = batch["input_ids"].shape
    if tokens is None or rows * width <= tokens:
        yield batch
        return
    size = max(1, tokens // width)
    for start in range(0, rows, size):
        part = {key: value[start : start + size] for key, value in batch.items()}
        longest = int(part["attention_mask"].sum(1).max())
        yield {key: value[:, :longest] if value.ndim == 2 else value for key, value in part.items()}


def fitting_tokens(
    model: nn.Module, objective: Objective, batch: Batch, device: str, limit: int, passing: int = 0
) -> int:
    """Padded tokens of one pass so that the whole process stays under ``limit`` bytes of resident memory.

    ``batch`` is one sequence of the greatest length; ``passing`` the bytes that its backward pass makes anew and drops.
    Raises :class:`TrainError` with the least limit that would do.
    """
    width = batch["input_ids"].shape[1]
    each = (kept_bytes(model, objective, batch, device) + passing) * _SLACK
    fixed = resident_bytes() + _PASSING + _LATER * sum(p.numel() for p in trainable(model).values())
    if (rows := int((limit - fixed) // each)) < 1:
        raise TrainError(
            f"a memory limit of {limit / 2**20:.0f} MiB is too small: model and libraries take {fixed / 2**20:.0f} MiB, and one "
            f"sequence of {width} tokens {each / 2**20:.0f} more. Give {(fixed + each) / 2**20 + 1:.0f} MiB or more, or shorter sequences."
        )
    return rows * width


def kept_bytes(model: nn.Module, objective: Objective, batch: Batch, device: str) -> int:
    """Bytes that the graph of ``batch`` keeps for its backward pass, weights not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in chain(model.parameters(), model.buffers())}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        objective.loss(model, batch, device)
    return sum(kept.values())


def longest_sequence(batches: Iterator[Batch], length: int) -> Batch:
    """The first sequence of ``batches``, repeated to ``length`` tokens: the greatest that training may meet."""
    first = next(batches)
    ids_1T = np.resize(first["input_ids"][:1], (1, length))
    labels = np.resize(first["labels"][:1], (1, length)) if first["labels"].ndim == 2 else first["labels"][:1]
    return {
        "input_ids": ids_1T,
        "attention_mask": np.ones_like(ids_1T),
        "labels": labels,
        "index": first["index"][:1],
    }
