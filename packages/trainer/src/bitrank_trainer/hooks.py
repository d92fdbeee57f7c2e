"""The one place where a method reaches into the loop."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class RankHook(Protocol):
    """What changes ranks while training. ``step`` counts optimizer steps from 1. :class:`NoHook` does nothing."""

    def penalty(self) -> Tensor | None:
        """A term to add to the task loss, logged apart from it; None when there is none."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step, before its gradients are dropped."""

    def resized(self) -> dict[str, tuple[int, Tensor]] | None:
        """{parameter name: (axis, indices kept)} of the trainable parameters that were replaced by cut ones, or removed, since this
        was last asked; None when all are the same. Asked after each step and after :meth:`restore`."""

    def settled(self, step: int) -> bool:
        """Whether ranks are final after ``step``: only then may a model count as the best one."""

    def ranks(self) -> dict[str, int]:
        """The active rank of each adapted matrix."""

    def state(self) -> tuple[dict[str, Tensor], str]:
        """Tensors and a text for the checkpoint."""

    def restore(self, tensors: dict[str, Tensor], text: str) -> None:
        """Put back what :meth:`state` gave."""


class NoHook:
    """Plain training."""

    def penalty(self) -> Tensor | None:
        return None

    def after_step(self, step: int) -> None: ...

    def resized(self) -> dict[str, tuple[int, Tensor]] | None:
        return None

    def settled(self, step: int) -> bool:
        return True

    def ranks(self) -> dict[str, int]:
        return {}

    def state(self) -> tuple[dict[str, Tensor], str]:
        return {}, ""

    def restore(self, tensors: dict[str, Tensor], text: str) -> None: ...
