"""Loss scaling: small fp16 gradients kept from vanishing, and a step whose gradient overflowed left out.

The loss is multiplied by a factor before the backward pass and gradients are divided by it before anything looks at them, clipping
above all (Micikevicius et al. 2018, "Mixed precision training", section 3.2). An overflow halves the factor; 2,000 steps
without one double it. The arithmetic is torch's ``GradScaler``; counted, told and kept in checkpoints here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitrank_trainer.checkpoints import Progress
from bitrank_trainer.errors import Diverged

FIRST_SCALE = 2.0**16  # as in torch and in the paper's recipe


class Scaling:
    """The backward pass, the clipping and the step of one optimizer. With ``first`` None nothing is scaled or left out."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, device: str, first: float | None, progress: Progress
    ) -> None:
        self._optimizer = optimizer
        self._scaler = torch.amp.GradScaler(device, init_scale=first or 1.0, enabled=first is not None)
        if first is not None and progress.scaling:
            self._scaler.load_state_dict(progress.scaling)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` (scaled) to what the parameters hold."""
        self._scaler.scale(loss).backward()

    def clip(self, limit: float) -> Tensor:
        """Divide the gradients by the scale, clip them to norm ``limit``, and return the norm before clipping."""
        self._scaler.unscale_(self._optimizer)
        return torch.nn.utils.clip_grad_norm_(self._optimizer.param_groups[0]["params"], limit)

    def step(self, progress: Progress, norm: Tensor) -> dict[str, float]:
        """The optimizer's step; its figures. A step left out counts in ``progress`` and has gradient zero for all that follows.

        Raises :class:`Diverged` when gradients overflow even without any scale: it is not the scale then.
        """
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if not self._scaler.is_enabled():
            return {"train/grad_norm": float(norm)}
        progress.scaling = self._scaler.state_dict()
        scale = self._scaler.get_scale()
        if not math.isfinite(float(norm)):
            if scale < 1:
                raise Diverged(
                    progress.step,
                    f"fp16 gradients overflow at a loss scale of {2 * scale:g}; bf16 or fp32 have the range",
                )
            progress.skipped += 1
            for parameter in self._optimizer.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter.grad.zero_()
        kept = float(norm) if math.isfinite(float(norm)) else 0.0
        return {"train/grad_norm": kept, "train/loss_scale": scale, "train/skipped": float(progress.skipped)}
