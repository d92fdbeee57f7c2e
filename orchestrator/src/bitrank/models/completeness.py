"""Check that a checkpoint contains the whole model, and find the head modules of a classifier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers.core_model_loading import dot_natural_key

from bitrank.errors import UserError
from bitrank.models.checkpoint import Checkpoint
from bitrank.spec.task_kinds import task_kind

_SHOWN = 4


def heads_of(model: Any) -> list[str]:
    """Return the modules with parameters outside the body of a classifier, which are trained whole.

    Heads tied to an embedding are not included.
    """
    body = f"{model.base_model_prefix}."
    shared = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name.startswith(body)}
    own = ((name, list(module.parameters(recurse=False))) for name, module in model.named_modules())
    outside = [(name, parts) for name, parts in own if parts and name and not f"{name}.".startswith(body)]
    return [name for name, parts in outside if shared.isdisjoint(map(id, parts))]


def logits_of(model: nn.Module, heads: Iterable[str], classes: int) -> str | None:
    """Return the head that outputs one logit per class: the last one with ``classes`` rows."""
    rows = {name: getattr(model.get_submodule(name), "weight", None) for name in heads}
    fitting = [
        name
        for name, weight in rows.items()
        if weight is not None and weight.ndim == 2 and len(weight) == classes
    ]
    return fitting[-1] if fitting else None


def check_complete(checkpoint: Checkpoint, model: Any, name: str, kind: str) -> None:
    """Raise :class:`UserError` if a part that must not be drawn at random is missing or has another shape.

    Only a kind of task with a new head may have new modules: those outside the body, and the body's pooler,
    which language models lack.
    """
    new_head = task_kind(kind).new_head
    heads = set(heads_of(model)) if new_head else set[str]()

    def may_be_new(parameter: str) -> bool:
        module = parameter.rpartition(".")[0]
        return module in heads or (new_head and "pooler" in module.split("."))

    wrong = [
        f"{key} is {list(stored)} there and {list(expected)} by its config"
        for key, (stored, expected) in sorted(checkpoint.mismatched.items())
        if not may_be_new(key)
    ]
    if wrong:
        raise UserError(
            f"the weights of {name} do not fit its config.json: {_some(wrong)}; give files and config of one "
            "model"
        )
    absent = [key for key in sorted(checkpoint.missing, key=dot_natural_key) if not may_be_new(key)]
    _check_names(checkpoint, model, name, kind)
    if absent and not any(key.startswith(f"{model.base_model_prefix}.") for key in absent):
        need = task_kind(kind).requirement
        raise UserError(
            f"{name} cannot {need.ability}: its weights lack {_some(absent)}, the head of "
            f"{type(model).__name__}, which must not be drawn at random; give {need.remedy}"
        )
    if absent:
        raise UserError(
            f"the weights of {name} lack {_some(absent)}, which {type(model).__name__} needs and which must "
            "not be drawn at random; give complete weights, or the config.json that belongs to them"
        )


def _check_names(checkpoint: Checkpoint, model: Any, name: str, kind: str) -> None:
    """Raise :class:`UserError` if the checkpoint has no weight of the model's body under its name.

    Some classes of transformers call the body otherwise than the other classes of their architecture
    (``LlamaForQuestionAnswering``), so that no checkpoint of a language model fits them.
    """
    body = [key for key, _ in model.named_parameters() if key.startswith(f"{model.base_model_prefix}.")]
    if body and set(body) <= set(checkpoint.missing):
        need = task_kind(kind).requirement
        raise UserError(
            f"{name} cannot {need.ability}: its weights have none of the names that {type(model).__name__} "
            f"expects ({body[0]} and so on); give {need.remedy}"
        )


def _some(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
