"""The result of a rank rule's ``attach``: the adapted model and the hook that the training loop calls."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from bitrank_trainer import RankHook
from peft import PeftModel


class AdapterHook(RankHook, Protocol):
    """A hook of the training loop that can also save its adapter."""

    def save(self, folder: Path) -> None:
        """Save the adapter in PEFT's format (safetensors)."""


class Attached(NamedTuple):
    """A model with adapters, and the hook that changes their ranks during training."""

    model: PeftModel
    hook: AdapterHook
