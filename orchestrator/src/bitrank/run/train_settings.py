"""How long and how big: a spec's words turned into the trainer's settings."""

from __future__ import annotations

import math

import torch
from bitrank_trainer import FIRST_SCALE, TrainSettings

from bitrank.spec.run_spec import RunSpec


def step_sequences(spec: RunSpec) -> int:
    """Sequences of one optimizer step, the same on every device."""
    return spec.batch_size * max(1, spec.accumulation)


def step_parts(spec: RunSpec, device: str) -> int:
    """In how many parts those sequences go through the model; gradients add up over them, so this costs or
    saves memory.

    By epochs a CPU takes two unless the spec says how many: half the activations, the same step to rounding.
    Every part still has a sequence for each process.
    """
    if spec.accumulation:
        return spec.accumulation
    halved = bool(spec.epochs) and device == "cpu" and spec.batch_size >= 2 * spec.processes
    return 2 if halved else 1


def settings_for(
    spec: RunSpec, sequences: int, device: str, dtype: torch.dtype = torch.bfloat16
) -> TrainSettings:
    """Settings for training on ``sequences`` sequences. Epochs become optimizer steps, the last short batch
    counted; fp16 gets a loss scale."""
    steps = spec.steps or math.ceil(sequences / step_sequences(spec)) * (spec.epochs or 1)
    return TrainSettings(
        steps=steps,
        learning_rate=spec.learning_rate,
        warmup=spec.warmup,
        weight_decay=spec.weight_decay,
        clip=spec.clip,
        accumulation=step_parts(spec, device),
        log_every=min(spec.log_every, max(1, steps // 10)),
        eval_every=min(spec.eval_every, steps),
        checkpoint_every=min(spec.checkpoint_every, steps),
        loss_scale=FIRST_SCALE if dtype == torch.float16 else None,
    )
