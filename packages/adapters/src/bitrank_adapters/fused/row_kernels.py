"""What compiled passes over rows must offer to be used by the fused forms here. Who compiles them is not this package's matter."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Rows(Protocol):
    """Compiled passes over rows, each for tensors that :meth:`serves` says yes to."""

    def serves(self, *tensors: Tensor) -> bool: ...

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``weight · x / √(mean x² + eps)`` over the last axis, and 1 / √(…) in fp32, (…, 1)."""

    def rms_norm_gradient(self, grad: Tensor, x: Tensor, weight_D: Tensor, scale: Tensor) -> Tensor:
        """The gradient of x; ``scale`` as it came with the norm."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) · up``."""

    def swiglu_gradients_(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of ``gate`` and ``up``; ``grad`` may be overwritten."""
