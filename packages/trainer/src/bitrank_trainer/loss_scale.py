"""Loss scaling for fp16: small gradients stay above underflow, and steps with overflow are skipped.

The loss is multiplied by a scale before the backward pass, and gradients are divided by it before clipping
(Micikevicius et al. 2018, "Mixed precision training", section 3.2). An overflow halves the scale; 2,000 steps
without overflow double it. torch's ``GradScaler`` does the arithmetic; this module counts skipped steps, logs
the scale and saves its state in checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitrank_trainer.checkpoints import Progress
from bitrank_trainer.errors import Diverged

FIRST_SCALE = 2.0**16  # as in torch and in the paper's recipe


class Scaling:
    """Backward pass, clipping and step of one optimizer. With ``first`` None there is no scaling."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, device: str, first: float | None, progress: Progress
    ) -> None:
        self._optimizer, self._device = optimizer, device
        self._scaler = torch.amp.GradScaler(device, init_scale=first or 1.0, enabled=first is not None)
        if first is not None and progress.scaling:
            self._scaler.load_state_dict(progress.scaling)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of the scaled ``loss`` in the parameters."""
        self._scaler.scale(loss).backward()

    def scaled(self, factor: float) -> Tensor:
        """``factor`` times the loss scale of :meth:`backward`, in fp32 on the device."""
        made: Tensor = self._scaler.scale(torch.tensor(factor, device=self._device))
        return made

    def clip(self, limit: float) -> Tensor:
        """Unscale the gradients, clip them to norm ``limit`` and return the norm before clipping."""
        self._scaler.unscale_(self._optimizer)
        return torch.nn.utils.clip_grad_norm_(self._optimizer.param_groups[0]["params"], limit)

    def step(self, progress: Progress, norm: Tensor) -> dict[str, float]:
        """Do the optimizer step and return its metrics.

        A skipped step increments ``progress.skipped`` and sets gradients to zero for the rank hook. Raises
        :class:`Diverged` if gradients overflow at a scale of 1 too, since a lower scale cannot help then.
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
