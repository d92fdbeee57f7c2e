"""Interface of the compiled row kernels used in this package; the caller provides an implementation."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Rows(Protocol):
    """Compiled row kernels; each requires tensors for which :meth:`serves` is true."""

    def serves(self, *tensors: Tensor) -> bool: ...

    def softmax_(
        self, scores_URS: Tensor, mask: Tensor | None, scale: float, length: int, heads: int
    ) -> Tensor:
        """``softmax(scale · scores + mask)`` over the last axis, in place.

        ``scores_URS`` is contiguous and ordered by sequence, head (``heads`` per sequence) and position
        (``length`` per head). ``mask`` has the dtype of the scores and is broadcast to (sequences, 1,
        ``length``, keys).
        """

    def softmax_gradient_(self, grad_URS: Tensor, shares_URS: Tensor, scale: float) -> Tensor:
        """Gradient of the scores from ``grad_URS`` of the probabilities, in its place; both contiguous."""

    def rotate(self, x_BHTD: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> Tensor:
        """Rotary embedding of x; with ``back``, the gradient of x from the gradient of the result.

        ``cosine`` and ``sine`` have shape (B or 1, T, D).
        """
