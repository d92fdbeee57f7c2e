"""Interface of the compiled row kernels used in this package; the caller provides an implementation."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Rows(Protocol):
    """Compiled row kernels; each requires tensors for which :meth:`serves` is true."""

    def serves(self, *tensors: Tensor) -> bool: ...

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``weight · x / √(mean x² + eps)`` over the last axis, and 1 / √(…) in fp32, shape (…, 1)."""

    def rms_norm_gradient(self, grad: Tensor, x: Tensor, weight_D: Tensor, scale: Tensor) -> Tensor:
        """Gradient of x; ``scale`` is the second result of :meth:`rms_norm`."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) · up``."""

    def swiglu_gradients_(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of ``gate`` and ``up``; may overwrite ``grad``."""
