"""Micro-batches that fit a memory limit; their gradients sum to the gradient of the whole batch.

The memory saved for the backward pass is measured, not modelled: the tensors saved by the graph of one
sequence are counted. The caller provides the size of the backward pass's temporaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from bitrank_trainer.errors import TrainError
from bitrank_trainer.memory.meters import resident_bytes
from bitrank_trainer.model_inputs import Batch
from bitrank_trainer.objectives import Objective
from bitrank_trainer.optimizer import trainable

# Bytes of temporaries of a pass, mostly logits of one block in fp32 and in 16 bits; evaluation holds two in
# fp32, since the loss copies them.
_PASSING = 3 * 2**25
_SLACK = 1.25  # ratio of allocator usage to tensor bytes
_IGNORED = -100  # label of positions without a target
_LATER = 12  # bytes per trainable parameter after the first step: gradient and two fp32 moments


def micro_batches(batch: Batch, tokens: int | None) -> Iterator[Batch]:
    """Split ``batch`` into parts of at most ``tokens`` padded tokens, one sequence at least.

    Each part is trimmed to its longest sequence; labels of another width, which a decoder of its own reads,
    keep it. None for ``tokens`` yields ``batch`` unchanged.
    """
    shape = rows, width = batch["input_ids"].shape
    if tokens is None or rows * width <= tokens:
        yield batch
        return
    size = max(1, tokens // width)
    for start in range(0, rows, size):
        part = {key: value[start : start + size] for key, value in batch.items()}
        longest = int(part["attention_mask"].sum(1).max())
        trimmed = {key for key, value in batch.items() if value.shape == shape}
        yield {key: value[:, :longest] if key in trimmed else value for key, value in part.items()}


def fitting_tokens(
    model: nn.Module, objective: Objective, batch: Batch, device: str, limit: int, passing: int = 0
) -> int:
    """Padded tokens per pass for which the process stays under ``limit`` bytes of resident memory.

    ``batch`` is one sequence of the greatest length; ``passing`` is the size in bytes of the temporaries of
    its backward pass. Raises :class:`TrainError` with the smallest sufficient limit.
    """
    width = batch["input_ids"].shape[1]
    each = (kept_bytes(model, objective, batch, device) + passing) * _SLACK
    fixed = resident_bytes() + _PASSING + _LATER * sum(p.numel() for p in trainable(model).values())
    if (rows := int((limit - fixed) // each)) < 1:
        raise TrainError(
            f"a memory limit of {limit / 2**20:.0f} MiB is too small: model and libraries take "
            f"{fixed / 2**20:.0f} MiB, and one "
            f"sequence of {width} tokens {each / 2**20:.0f} more. Give {(fixed + each) / 2**20 + 1:.0f} MiB "
            "or more, or shorter sequences."
        )
    return rows * width


def kept_bytes(model: nn.Module, objective: Objective, batch: Batch, device: str) -> int:
    """Bytes that the graph of ``batch`` saves for its backward pass, without parameters and buffers."""
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
    """First sequence of ``batches``, repeated to ``length`` tokens: the largest sequence of the run.

    If every sequence of the first batch has one target, so has this one.
    """
    first = next(batches)
    ids_1T = np.resize(first["input_ids"][:1], (1, length))
    longest = {
        "input_ids": ids_1T,
        "attention_mask": np.ones_like(ids_1T),
        "labels": _lengthened(first["labels"], length),
        "index": first["index"][:1],
    }
    if "token_type_ids" in first:
        longest["token_type_ids"] = np.resize(first["token_type_ids"][:1], (1, length))
    return longest


def _lengthened(labels: np.ndarray, length: int) -> np.ndarray:
    """The labels of the first sequence for ``length`` tokens; one of a whole sequence stays as it is."""
    if labels.ndim != 2:
        return labels[:1]
    is_target_BT = labels != _IGNORED
    if (is_target_BT.sum(1) != 1).any():
        return np.resize(labels[:1], (1, length))
    longest = np.full((1, length), _IGNORED, dtype=labels.dtype)
    longest[0, -1] = labels[0, is_target_BT[0]][0]
    return longest
