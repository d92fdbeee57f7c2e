"""A transformers model in memory as the input of planning: checked, and saved to a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from bitrank.errors import UserError
from bitrank.models.load import load_tokenizer
from bitrank.planning.budget import sizes_of
from bitrank.planning.from_config import is_outline
from bitrank.spec.run_spec import RunSpec


@contextmanager
def folder_of(model: str | Path | nn.Module, tokenizer: Any) -> Iterator[str]:
    """The folder or name of ``model``; a model in memory is saved to a temporary folder."""
    if not isinstance(model, nn.Module):
        if is_outline(str(model)):
            raise UserError(
                f"{model} has no weights to measure; `bitrank plan --model` plans from a config alone"
            )
        yield str(model)
        return
    _check_plain(model)
    if tokenizer is None:
        tokenizer = _tokenizer_of(model)
    with TemporaryDirectory(prefix="bitrank-") as temporary:
        folder = Path(temporary) / "model"  # a constant name, because it is part of the cache key
        model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
        yield str(folder)


def _tokenizer_of(model: Any) -> Any:
    if not getattr(model.config, "name_or_path", ""):
        raise UserError("this model has no name_or_path to load a tokenizer from; give tokenizer=…")
    return load_tokenizer(model.config.name_or_path)


def _check_plain(model: nn.Module) -> None:
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise UserError(f"expected a transformers model, a name or a folder, got {type(model).__name__}")
    if hasattr(model, "peft_config"):
        raise UserError("this model has adapters; plan its base before attach")
    quantized = any(not p.is_floating_point() for p in model.parameters())
    if quantized or any(hasattr(module, "quantized") for module in model.modules()):
        raise UserError("this model is quantized; plan it before apply, with its float weights")


def check_names(model: nn.Module, spec: RunSpec) -> None:
    """Raise :class:`UserError` if ``model`` lacks a module of the model class that the measurement uses."""
    own = {name for name, _ in model.named_modules()}
    missing = [name for name in sizes_of(spec).matrices if name not in own]
    if missing:
        raise UserError(
            f"{type(model).__name__} has no {missing[0]}, which a model for {spec.kind} has: give the model "
            "with the head of its task (AutoModelForSequenceClassification or AutoModelForCausalLM)"
        )


@contextmanager
def restored_threads() -> Iterator[None]:
    """Restore the caller's number of torch threads on exit, because planning changes it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
