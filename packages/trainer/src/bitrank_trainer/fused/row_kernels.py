"""What compiled passes over rows must offer to be used here. Who compiles them is not this package's matter."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Rows(Protocol):
    """Compiled passes over rows, each for tensors that :meth:`serves` says yes to."""

    def serves(self, *tensors: Tensor) -> bool: ...

    def softmax_(
        self, scores_URS: Tensor, mask: Tensor | None, scale: float, length: int, heads: int
    ) -> Tensor:
        """``softmax(scale · scores + mask)`` over the last axis, in place, of contiguous scores that lie by sequence, by head (``heads``
        of a sequence) and by position (``length`` of a head); ``mask``, in their type, is expanded to (sequences, 1, ``length``, keys)."""

    def softmax_gradient_(self, grad_URS: Tensor, shares_URS: Tensor, scale: float) -> Tensor:
        """The gradient of the scores from that of their shares, in its place; both contiguous."""

    def rotate(self, x_BHTD: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> Tensor:
        """x by rotary positions, ``cosine`` and ``sine`` being (B or 1, T, D), or the gradient of x from that of the result."""
