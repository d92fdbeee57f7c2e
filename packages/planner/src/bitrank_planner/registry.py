"""Entries of this package's registries: functions with their descriptions for help texts and lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """Entry of a registry; it can be called like its function.

    ``needs`` names the measurement per matrix that the function takes in addition: ``importance``
    (mean |W ∘ G|), ``norms`` (‖W‖_F), ``ratios`` (explained variance of the inputs), ``ranks`` (of a plan) or
    ``added_loss`` (nats in the low format).
    """

    function: Callable[..., T]
    needs: str | None = None

    @property
    def about(self) -> str:
        """The first line of the function's documentation: a sentence for users, without parameters."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def __call__(self, *arguments: Any, **named: Any) -> T:
        return self.function(*arguments, **named)
