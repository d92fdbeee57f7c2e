"""Convert a spec's sizes and durations to the trainer's settings."""

from __future__ import annotations

import math

import torch
from bitrank_trainer import FIRST_SCALE, TrainSettings

from bitrank.spec.run_spec import RunSpec


def step_sequences(spec: RunSpec) -> int:
    """Number of sequences of one optimizer step, the same on every device."""
    return spec.batch_size * max(1, spec.accumulation)


def steps_of_epoch(spec: RunSpec, sequences: int) -> int:
    """Number of optimizer steps of one pass through ``sequences``, the last short batch included."""
    return math.ceil(sequences / step_sequences(spec))


def step_parts(spec: RunSpec, device: str) -> int:
    """Number of forward passes of one optimizer step. Gradients accumulate over them, which saves memory.

    A CPU that trains by epochs takes two unless the spec sets ``accumulation``: half the activations, and
    the same step up to rounding. Every pass has at least one sequence for each process.
    """
    if spec.accumulation:
        return spec.accumulation
    halved = bool(spec.epochs) and device == "cpu" and spec.batch_size >= 2 * spec.processes
    return 2 if halved else 1


def settings_for(
    spec: RunSpec, sequences: int, device: str, dtype: torch.dtype = torch.bfloat16
) -> TrainSettings:
    """Settings for training on ``sequences`` sequences.

    Epochs are converted to optimizer steps. fp16 uses a loss scale.
    """
    steps = spec.steps or steps_of_epoch(spec, sequences) * (spec.epochs or 1)
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
