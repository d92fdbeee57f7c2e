"""A transformers model in memory: checked, saved to a temporary folder for planning, and what plans name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bitrank_quant import WeightMatrix, weight_matrices
from torch import nn

from bitrank.errors import UserError
from bitrank.models.architectures import has_new_head
from bitrank.models.completeness import heads_of
from bitrank.models.load import load_tokenizer
from bitrank.models.quantized_checkpoints import refuse_quantized_model
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
    refuse_quantized_model(model, "plan it before apply", "plan its base")


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


def plannable(model: nn.Module, heads: Collection[str]) -> list[WeightMatrix]:
    """The matrices that a plan may name: those of ``heads`` are trained, and tied ones follow their owner."""
    return [m for m in weight_matrices(model) if m.tied_to is None and m.name not in heads]


def new_heads(model: nn.Module) -> list[str]:
    """Modules of a classifier that runs train whole; none for other models."""
    return heads_of(model) if has_new_head(model) else []
