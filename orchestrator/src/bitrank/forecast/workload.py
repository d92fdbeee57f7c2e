"""Compute a run's number of tokens and batch shapes from text lengths and the seed, before training."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from bitrank_data import Batch, data_kind, training_parts, widths

from bitrank.run.data import RunData, load_data
from bitrank.run.generations import generation_shapes
from bitrank.run.train_settings import settings_for
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind

Shape = tuple[int, int]  # number of sequences, padded length


@dataclass(frozen=True)
class Workload:
    """Tokens and batch shapes of a run.

    ``train`` and ``evaluated`` are the distinct shapes of batches. Token counts include padding and cover the
    whole run. ``evaluation_tokens`` covers every validation and, if the run is tested, the test before and
    after training. ``prompts`` are the distinct shapes of batches that texts are generated for, and
    ``new_tokens`` the bound of a text; the model's positions may allow fewer. ``classes`` is the task's
    number of classes, ``steps`` the number of optimizer steps.
    """

    train: frozenset[Shape]
    evaluated: frozenset[Shape]
    prompts: frozenset[Shape]
    new_tokens: int
    train_tokens: int
    evaluation_tokens: int
    classes: int
    steps: int


def heaviest(shapes: Iterable[Shape]) -> set[Shape]:
    """Return the one or two of ``shapes`` that can need the most memory; none of none.

    These are the batch with the most tokens and the batch with the longest sequence, whose attention scores
    grow with the square of its length. Ties are broken by the other criterion.
    """
    shapes = list(shapes)
    if not shapes:
        return set()
    return {
        max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1])),
        max(shapes, key=lambda shape: (shape[1], shape[0])),
    }


def workload(spec: RunSpec, device: str) -> Workload:
    """Return the workload of ``spec``; its task is tokenized, or read from the cache."""
    data = load_data(spec)
    train = data.task.splits["train"]
    settings = settings_for(spec, len(train), device)
    shapes = _training(data, settings.steps * settings.accumulation)
    validation = [_shape(batch) for batch in data.batches_of(data.validation)]
    test = [_shape(batch) for batch in data.batches_of(data.test)] if spec.tested else []
    prompts, new_tokens = _generation(spec, data)
    validations = -(-settings.steps // settings.eval_every)
    return Workload(
        train=frozenset(shapes),
        evaluated=frozenset(validation + test),
        prompts=prompts,
        new_tokens=new_tokens,
        train_tokens=_tokens(shapes),
        evaluation_tokens=validations * _tokens(validation) + 2 * _tokens(test),
        classes=len(data.task.classes),
        steps=settings.steps,
    )


def _training(data: RunData, count: int) -> list[Shape]:
    """Return the shapes of the first ``count`` parts of training batches, without empty parts."""
    train = data.task.splits["train"]
    lengths_N = data_kind(data.task.kind).lengths(train)
    width = widths(lengths_N, data.multiple)
    parts: list[np.ndarray] = []
    for epoch in itertools.count():
        parts += training_parts(lengths_N, data.batch_size, data.seed, epoch, data.parts)
        if len(parts) >= count:
            break
    return [(len(part), width(int(lengths_N[part].max()))) for part in parts[:count] if len(part)]


def _generation(spec: RunSpec, data: RunData) -> tuple[frozenset[Shape], int]:
    """Return the shapes of batches of prompts, and the bound of a text's tokens; without texts none and 0."""
    generation = task_kind(spec.kind).generation if spec.tested else None
    return (frozenset(), 0) if generation is None else generation_shapes(data.test, generation.longest)


def _shape(batch: Batch) -> Shape:
    rows, width = batch["input_ids"].shape
    return int(rows), int(width)


def _tokens(shapes: list[Shape]) -> int:
    return sum(rows * width for rows, width in shapes)
