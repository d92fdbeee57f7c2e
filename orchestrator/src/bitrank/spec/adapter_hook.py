"""What a rank rule attaches: the adapted model and the hook that the training loop calls."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from bitrank_trainer import RankHook
from peft import PeftModel


class AdapterHook(RankHook, Protocol):
    """A hook of the loop that can also save its adapter."""

    def save(self, folder: Path) -> None:
        """The adapter in PEFT's own format (safetensors)."""


class Attached(NamedTuple):
    """A model with adapters, and what changes their ranks while it trains."""

    model: PeftModel
    hook: AdapterHook
