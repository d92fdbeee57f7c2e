"""Load models by name, hub id or local folder.

Encoders get a classification head; decoders keep their language-model head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from bitrank_trainer import implementation
from torch import nn
from transformers import AutoTokenizer
from transformers.initialization import no_init_weights, no_tie_weights

from bitrank.errors import UserError
from bitrank.models.architectures import auto_class, check_folder
from bitrank.models.checkpoint import Checkpoint, read_checkpoint
from bitrank.models.completeness import check_complete, heads_of, logits_of
from bitrank.models.config import task_config
from bitrank.models.fuse import attention_for
from bitrank.models.labels import class_names, row_order
from bitrank.models.locate import cannot_load, folder_of, locate, quiet_transformers
from bitrank.models.meta_model import class_of
from bitrank.models.padding import set_padding
from bitrank.models.tokenizer_files import has_vocabulary, no_tokenizer
from bitrank.models.weights import Filler
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind


@dataclass(frozen=True)
class Loaded:
    """A model in the compute dtype, its tokenizer, and its number of parameters.

    ``trained_modules`` names the modules that are trained whole (a classifier's head). The weights are on the
    ``meta`` device until ``fill`` (one module by its name) and ``fill_rest`` are called. ``filed`` returns
    the dtype in which a module's weight is stored. ``new_modules`` are those of ``trained_modules`` that are
    drawn from the seed. ``notices`` are sentences about the weights for the user.
    """

    model: nn.Module
    tokenizer: Any
    trained_modules: list[str]
    parameters: int
    fill: Callable[[str], None]
    fill_rest: Callable[[], None]
    filed: Callable[[str], torch.dtype]
    new_modules: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of model ``name``. Raises :class:`UserError` if there is none."""
    quiet_transformers()
    place = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # a file of another form raises errors of any class
        if Path(place).is_dir():
            raise UserError(no_tokenizer(name, Path(place), error)) from error
        raise UserError(cannot_load(name, error)) from error
    if Path(place).is_dir() and not has_vocabulary(Path(place), tokenizer):
        raise UserError(no_tokenizer(name, Path(place)))
    return tokenizer


def open_model(spec: RunSpec, classes: int | Sequence[str], device: str, dtype: torch.dtype) -> Loaded:
    """Return the model of ``spec`` for its kind of task, without weights. New heads are drawn from its seed.

    ``classes`` are the names of a classifier's classes, or their number. A head of the checkpoint is kept if
    its label names are the same, in any order; otherwise its last layer is new. The head is always trained
    whole. Raises :class:`UserError` if the model cannot be loaded or does not support such tasks.
    """
    name, kind = spec.model_source, spec.kind
    labels = list(task_kind(kind).outputs) or class_names(classes)
    tokenizer = load_tokenizer(name)
    config, stored = task_config(name, kind, labels, spec.dropout)
    auto = auto_class(kind)
    folder = folder_of(name)
    check_folder(folder)
    attention = implementation(class_of(auto, config), attention_for(device, spec.fused))
    with no_init_weights(), no_tie_weights(), init_empty_weights(include_buffers=False):
        empty: Any = auto.from_config(config, dtype=dtype, attn_implementation=attention)
    checkpoint = read_checkpoint(empty, folder, dtype)
    check_complete(checkpoint, empty, name, kind)
    checkpoint.tie(empty)
    set_padding(empty, tokenizer)
    head = _head(empty, checkpoint, stored, labels, kind) if task_kind(kind).new_head else _Head()
    filler = Filler(empty, checkpoint, device, spec.seed, head.redrawn, head.rows)
    drawn = {name.rpartition(".")[0] for name in filler.new_parameters}
    new = [module for module, _ in empty.named_modules() if module in drawn]
    trained = {*head.modules, *new}
    trained_modules = [module for module, _ in empty.named_modules() if module in trained]

    def filed(module: str) -> torch.dtype:
        return checkpoint.dtype_of(filler.stored_name(f"{module}.weight"))

    return Loaded(
        model=empty.eval(),
        tokenizer=tokenizer,
        trained_modules=trained_modules,
        parameters=_size(empty),
        fill=filler.fill,
        fill_rest=filler.rest,
        filed=filed,
        new_modules=new,
        notices=_notices(checkpoint, new, head),
    )


@dataclass(frozen=True)
class _Head:
    """A classifier's head: modules, stored parameters to draw again, the order of rows, and the reason."""

    modules: list[str] = field(default_factory=list)
    redrawn: set[str] = field(default_factory=set)
    rows: dict[str, list[int]] = field(default_factory=dict)
    text: str = ""


def _head(model: Any, checkpoint: Checkpoint, stored: dict[int, str], labels: list[str], kind: str) -> _Head:
    heads = heads_of(model)
    if task_kind(kind).outputs:
        return _Head(heads)  # the outputs are the same in every checkpoint, in one order
    last = logits_of(model, heads, len(labels))
    filed = {name for name in checkpoint.groups if last and name.rpartition(".")[0] == last}
    if last is None or not filed:
        return _Head(heads)
    order = row_order(stored, labels)
    theirs, ours = ", ".join(str(stored[number]) for number in sorted(stored)), ", ".join(labels)
    if order is None:
        text = f"{last} is new: the checkpoint's labels ({theirs}) are not those of the data ({ours})"
        return _Head(heads, redrawn=filed, text=text)
    if order == sorted(order):
        return _Head(heads)
    text = f"rows of {last} are put into the data's order of labels: {theirs} in the checkpoint, {ours} here"
    return _Head(heads, rows={last: order}, text=text)


def _notices(checkpoint: Checkpoint, new: list[str], head: _Head) -> list[str]:
    notices = [head.text] if head.text else []
    if new:
        notices.append(f"newly initialised, trained whole: {', '.join(new)}")
    if checkpoint.untied:
        names = ", ".join(sorted(checkpoint.untied))
        notices.append(f"not tied, though config.json says so, as the files hold other values: {names}")
    if checkpoint.unused:
        more = f" and {len(checkpoint.unused) - 5} more" if len(checkpoint.unused) > 5 else ""
        notices.append(f"stored but not used by this model: {', '.join(checkpoint.unused[:5])}{more}")
    return notices


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
