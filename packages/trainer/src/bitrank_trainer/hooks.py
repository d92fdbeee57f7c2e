"""Interface by which a fine-tuning method takes part in the training loop."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class RankHook(Protocol):
    """Changes ranks during training; :class:`NoHook` changes nothing. ``step`` counts from 1."""

    def penalty(self) -> Tensor | None:
        """Term to add to the task loss, logged separately; None if there is none."""

    def after_step(self, step: int) -> None:
        """Run after the optimizer step, while its gradients still exist."""

    def resized(self) -> dict[str, tuple[int, Tensor]] | None:
        """{parameter name: (axis, kept indices)} of trainable parameters cut or removed since the last call.

        None if no parameter changed. The loop calls it after each step and after :meth:`restore`.
        """

    def rescaled(self) -> dict[str, float] | None:
        """{parameter name: factor} of trainable parameters multiplied since the last call, output unchanged.

        None if there are none. Names are those before :meth:`resized`, and the loop calls it first.
        """

    def settled(self, step: int) -> bool:
        """Whether ranks are final after ``step``; only then may a model count as the best."""

    def is_constant(self) -> bool:
        """Whether every step computes the same function of the parameters: no rank, mask or scale changes."""

    def ranks(self) -> dict[str, int]:
        """Active rank of each adapted matrix."""

    def state(self) -> tuple[dict[str, Tensor], str]:
        """Tensors and text for the checkpoint."""

    def restore(self, tensors: dict[str, Tensor], text: str) -> None:
        """Restore the output of :meth:`state`."""


class NoHook:
    """Training without rank changes."""

    def penalty(self) -> Tensor | None:
        return None

    def after_step(self, step: int) -> None: ...

    def resized(self) -> dict[str, tuple[int, Tensor]] | None:
        return None

    def rescaled(self) -> dict[str, float] | None:
        return None

    def settled(self, step: int) -> bool:
        return True

    def is_constant(self) -> bool:
        return type(self).after_step is NoHook.after_step

    def ranks(self) -> dict[str, int]:
        return {}

    def state(self) -> tuple[dict[str, Tensor], str]:
        return {}, ""

    def restore(self, tensors: dict[str, Tensor], text: str) -> None: ...
