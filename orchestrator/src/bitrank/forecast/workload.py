"""What a run will push through its model: how many tokens, in batches of which shapes. Known before training, from lengths and the seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from bitrank_data import Batch, training_parts, widths

from bitrank.run.data import RunData, load_data
from bitrank.run.train_settings import settings_for
from bitrank.spec.run_spec import RunSpec

Shape = tuple[int, int]  # sequences, and tokens that each is padded to


@dataclass(frozen=True)
class Workload:
    """``train`` and ``evaluated`` are the shapes of batches that will be met, each once; tokens are padded ones over the whole run.

    ``evaluation_tokens`` counts the test before training, every validation and the test after it. ``classes`` and ``steps`` are the task's
    and the optimizer's.
    """

    train: frozenset[Shape]
    evaluated: frozenset[Shape]
    train_tokens: int
    evaluation_tokens: int
    classes: int
    steps: int


def heaviest(shapes: Iterable[Shape]) -> set[Shape]:
    """The one or two of ``shapes`` that can hold most: the batch with most tokens, and the one with the longest sequence, whose attention
    scores go by the square of it (of equals the one with more of the other)."""
    shapes = list(shapes)
    return {
        max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1])),
        max(shapes, key=lambda shape: (shape[1], shape[0])),
    }


def workload(spec: RunSpec, device: str) -> Workload:
    """The workload of ``spec``; its task is tokenised for that (from the cache when it is there)."""
    data = load_data(spec)
    train = data.task.splits["train"]
    settings = settings_for(spec, len(train), device)
    shapes = _training(data, settings.steps * settings.accumulation)
    validation, test = ([_shape(b) for b in data.batches_of(split)] for split in (data.validation, data.test))
    validations = -(-settings.steps // settings.eval_every)
    return Workload(
        train=frozenset(shapes),
        evaluated=frozenset(validation + test),
        train_tokens=_tokens(shapes),
        evaluation_tokens=validations * _tokens(validation) + 2 * _tokens(test),
        classes=len(data.task.classes),
        steps=settings.steps,
    )


def _training(data: RunData, count: int) -> list[Shape]:
    """The shapes of the first ``count`` parts of training batches, without the empty ones."""
    train = data.task.splits["train"]
    lengths_N, width = train.lengths_N, widths(train, data.multiple)
    parts: list[np.ndarray] = []
    for epoch in itertools.count():
        parts += training_parts(lengths_N, data.batch_size, data.seed, epoch, data.parts)
        if len(parts) >= count:
            break
    return [(len(part), width(int(lengths_N[part].max()))) for part in parts[:count] if len(part)]


def _shape(batch: Batch) -> Shape:
    rows, width = batch["input_ids"].shape
    return int(rows), int(width)


def _tokens(shapes: list[Shape]) -> int:
    return sum(rows * width for rows, width in shapes)
