"""Training settings as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitrank_trainer.errors import TrainError


@dataclass(frozen=True)
class TrainSettings:
    """Settings of AdamW with linear warm-up, cosine decay to zero and clipping by gradient norm.

    ``steps`` counts optimizer steps. Each step takes ``accumulation`` batches and minimises the mean over all
    their sequences or predicted tokens, like one batch of all of them. ``eval_every``, ``checkpoint_every``
    and ``log_every`` are in optimizer steps (the first and the last step are always logged). ``micro_tokens``
    bounds the padded tokens of one pass: larger batches are split, with the same gradient. ``loss_scale`` is
    the initial loss scale of an fp16 model (see :mod:`~bitrank_trainer.loss_scale`); None disables scaling.
    """

    steps: int
    learning_rate: float = 2e-4
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulation: int = 1
    log_every: int = 50
    eval_every: int = 100
    checkpoint_every: int = 100
    micro_tokens: int | None = None
    loss_scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "log_every", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name} must be 1 or more, got {getattr(self, name)}")
        rates = 0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf
        if not (rates and self.clip > 0 and 0 <= self.warmup < 1):  # true for NaN too
            raise TrainError(
                "expected learning_rate > 0, clip > 0, 0 ≤ warmup < 1 and weight_decay ≥ 0, got "
                f"{self.learning_rate}, {self.clip}, {self.warmup} and {self.weight_decay}"
            )

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` (from 1): linear warm-up, then cosine to zero."""
        warm = max(1, round(self.warmup * self.steps)) if self.warmup else 0
        if step <= warm:
            return self.learning_rate * step / warm
        progress = (step - warm - 1) / max(1, self.steps - warm)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
