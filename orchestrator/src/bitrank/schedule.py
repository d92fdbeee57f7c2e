"""How long and how big: a spec's words turned into the trainer's settings."""

from __future__ import annotations

import math

import torch
from bitrank_trainer import FIRST_SCALE, TrainSettings

from bitrank.specs import RunSpec


def settings_for(spec: RunSpec, sequences: int, device: str, dtype: torch.dtype = torch.bfloat16) -> TrainSettings:
    """Settings for training on ``sequences`` sequences. Epochs become optimizer steps, the last short batch counted; fp16 gets a loss
    scale."""
    accumulation = spec.accumulation or (2 if spec.epochs and device == "cpu" else 1)
    steps = spec.steps or math.ceil(math.ceil(sequences / spec.batch_size) * (spec.epochs or 1) / accumulation)
    return TrainSettings(
        steps=steps,
        learning_rate=spec.learning_rate,
        warmup=spec.warmup,
        weight_decay=spec.weight_decay,
        clip=spec.clip,
        accumulation=accumulation,
        log_every=min(spec.log_every, max(1, steps // 10)),
        eval_every=min(spec.eval_every, steps),
        checkpoint_every=min(spec.checkpoint_every, steps),
        loss_scale=FIRST_SCALE if dtype == torch.float16 else None,
    )
