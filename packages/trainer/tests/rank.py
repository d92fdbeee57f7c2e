"""One process of small training runs.

Usage: ``python rank.py RANK COUNT RENDEZVOUS_FILE '[{"out": …, "folder": …}, …]' [sharded]``. Each job starts
training, or resumes from the checkpoint in its ``folder``, and writes the events and weights of this process
beside ``out``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from bitrank_trainer import (
    OBJECTIVES,
    Joined,
    NoHook,
    Processes,
    Sharded,
    Task,
    TrainSettings,
    evaluate,
    join,
    leave,
    train,
    trainable,
)
from safetensors.torch import save_file
from tiny_problem import TinyClassifier, TinyDeep, TinyLm, batch

SIZES = (7, 8, 1, 5, 2)  # rows of consecutive batches: uneven, and one too small to split


@dataclass(frozen=True)
class Job:
    out: str
    folder: str
    kind: str = "classification"
    stop_after: int | None = None
    deep: bool = False
    dropout: float = 0.0
    micro_tokens: int | None = None
    joined: bool = False  # one batch per step that joins two


class Penalised(NoHook):
    """Hook with a penalty that every process computes itself, like AdaLoRA's."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = list(trainable(model).values())

    def penalty(self) -> torch.Tensor:
        return 0.01 * sum(p.square().sum() for p in self._parameters)


def _one(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([first[key], second[key]]) for key in first}


def work(job: Job, processes: Processes) -> None:
    torch.manual_seed(0)
    model = TinyDeep() if job.deep else TinyClassifier() if job.kind == "classification" else TinyLm()
    processes.shard_base(model)
    held = sum(getattr(p, "_local_tensor", p).numel() for p in model.parameters() if not p.requires_grad)
    if job.kind == "classification":
        model.dropout.p = job.dropout
    objective, lm = OBJECTIVES[job.kind], job.kind != "classification"
    objective = objective.plain() if job.deep else objective

    def batches(skip: int):
        stop = None if job.stop_after is None else job.stop_after - skip
        first = 2 * skip if job.joined else skip
        each = (batch(n, SIZES[n % len(SIZES)], lm=lm) for n in range(first, 10**6))
        return islice(map(_one, each, each) if job.joined else each, stop)

    def validate() -> dict[str, float]:
        return evaluate(model, [batch(n, lm=lm) for n in range(30, 35)], objective, "cpu", processes).metrics

    events: list[dict[str, object]] = [{"event": "held", "frozen": held}]
    accumulation = 1 if job.joined else 2
    settings = TrainSettings(steps=20, learning_rate=1e-2, log_every=1, eval_every=5, checkpoint_every=3,
                             accumulation=accumulation, clip=0.5, micro_tokens=job.micro_tokens)  # fmt: skip
    task = Task(objective, batches, validate, "cpu", processes)
    try:
        train(model, task, Penalised(model), settings, Path(job.folder), events.append)
    except (StopIteration, RuntimeError):
        if job.stop_after is None:
            raise
    save_file(
        {name: p.detach().contiguous() for name, p in trainable(model).items()},
        f"{job.out}-{processes.rank}.safetensors",
    )
    Path(f"{job.out}-{processes.rank}.json").write_text(json.dumps(events))


if __name__ == "__main__":
    together = join(
        "cpu", int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Sharded if sys.argv[5:] else Joined
    )
    for options in json.loads(sys.argv[4]):
        work(Job(**options), together)
    leave()
