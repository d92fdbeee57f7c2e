"""Evaluation of a model on every sequence of a split, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from bitrank_trainer.distributed.data_parallel import ALONE, Processes
from bitrank_trainer.memory.meters import Throughput, release_memory
from bitrank_trainer.model_inputs import Batch, Row
from bitrank_trainer.objectives import Objective


@dataclass(frozen=True)
class Evaluation:
    """Metrics over a split, one row per sequence or per example (ordered by index), and the speed."""

    metrics: dict[str, float]
    rows: list[Row]
    seconds: float
    tokens_per_second: float


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    device: str,
    processes: Processes = ALONE,
    merge: Callable[[list[Row]], list[Row]] | None = None,
) -> Evaluation:
    """Run ``model`` over ``batches`` once and restore its training mode.

    Several ``processes`` distribute whole batches, so every row equals the single-process row, and each
    process receives the metrics over all rows. ``merge`` makes one row per example from the ordered rows of
    all sequences, before metrics. ``seconds`` is the time of the slowest process.
    """
    was_training = model.training
    model.eval()
    rows: list[Row] = []
    speed = Throughput()
    with torch.no_grad():
        for batch, counts in processes.distribute_batches(batches):
            with speed:
                found = objective.rows(model, batch, device)
            if counts:
                rows += found
                speed.tokens += int(batch["attention_mask"].sum())
    model.train(was_training)
    release_memory()
    parts = processes.gather((rows, speed.tokens, speed.seconds))
    rows = sorted((row for part, *_ in parts for row in part), key=lambda row: row["index"])
    rows = rows if merge is None else merge(rows)
    tokens = sum(tokens for _, tokens, _ in parts)
    whole = Throughput(tokens, max(seconds for *_, seconds in parts))
    return Evaluation(objective.metrics(rows), rows, whole.seconds, whole.tokens_per_second)
