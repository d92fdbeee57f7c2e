"""What a run will push through its model: how many tokens, in batches of which shapes. Known before training, from lengths and the seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from bitrank_data import Batch
from bitrank_data.batches import training_parts, widths

from bitrank.material import Material, load_material
from bitrank.schedule import settings_for
from bitrank.specs import RunSpec

Shape = tuple[int, int]  # sequences, and tokens that each is padded to


@dataclass(frozen=True)
class Workload:
    """``train`` and ``judged`` are the shapes of batches that will be met, each once; tokens are padded ones over the whole run.

    ``judged_tokens`` counts the test before training, every validation and the test after it. ``classes`` and ``steps`` are the task's
    and the optimizer's.
    """

    train: frozenset[Shape]
    judged: frozenset[Shape]
    train_tokens: int
    judged_tokens: int
    classes: int
    steps: int


def heaviest(shapes: Iterable[Shape]) -> set[Shape]:
    """The one or two of ``shapes`` that can hold most: the batch with most tokens, and the one with the longest sequence, whose attention
    scores go by the square of it (of equals the one with more of the other)."""
    shapes = list(shapes)
    return {max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1])), max(shapes, key=lambda shape: (shape[1], shape[0]))}


def workload(spec: RunSpec, device: str) -> Workload:
    """The workload of ``spec``; its task is tokenised for that (from the cache when it is there)."""
    material = load_material(spec)
    train = material.task.splits["train"]
    settings = settings_for(spec, len(train), device)
    shapes = _training(material, settings.steps * settings.accumulation)
    validation, test = ([_shape(b) for b in material.batches_of(split)] for split in (material.validation, material.test))
    validations = -(-settings.steps // settings.eval_every)
    return Workload(
        train=frozenset(shapes),
        judged=frozenset(validation + test),
        train_tokens=_tokens(shapes),
        judged_tokens=validations * _tokens(validation) + 2 * _tokens(test),
        classes=len(material.task.classes),
        steps=settings.steps,
    )


def _training(material: Material, count: int) -> list[Shape]:
    """The shapes of the first ``count`` parts of training batches, without the empty ones."""
    train = material.task.splits["train"]
    lengths_N, width = train.lengths_N, widths(train, material.multiple)
    parts: list[np.ndarray] = []
    for epoch in itertools.count():
        parts += training_parts(lengths_N, material.batch_size, material.seed, epoch, material.parts)
        if len(parts) >= count:
            break
    return [(len(part), width(int(lengths_N[part].max()))) for part in parts[:count] if len(part)]


def _shape(batch: Batch) -> Shape:
    rows, width = batch["input_ids"].shape
    return int(rows), int(width)


def _tokens(shapes: list[Shape]) -> int:
    return sum(rows * width for rows, width in shapes)
