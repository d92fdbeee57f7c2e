"""The result of a rank rule's ``attach``: the adapted model and the hook that the training loop calls."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from bitrank_trainer import RankHook
from peft import PeftModel


class AdapterHook(RankHook, Protocol):
    """A hook of the training loop that can also save its adapter."""

    def finish(self) -> None:
        """Run once after training, when the model has its final parameters: may replace layers."""

    def as_stored(self) -> AbstractContextManager[None]:
        """Inside, the model computes with the adapter as :meth:`save` writes it."""

    def stored_bytes(self) -> int:
        """Bytes that the tensors of :meth:`save` add to the base: trained scales replace stored ones."""

    def save(self, folder: Path) -> None:
        """Save the adapter in PEFT's format (safetensors, bf16)."""


class Attached(NamedTuple):
    """A model with adapters, and the hook that changes their ranks during training."""

    model: PeftModel
    hook: AdapterHook
