"""A model's configuration, adapted to the kind of task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from bitrank.errors import UserError
from bitrank.models.architectures import check_task, config_of
from bitrank.models.locate import locate, repository_of
from bitrank.spec.task_kinds import task_kind


def load_config(name: str) -> Any:
    """Return the stored configuration of model ``name``. Raises :class:`UserError` if there is none."""
    return config_of(name, locate(name))


def task_config(name: str, kind: str, labels: list[str], dropout: float | None) -> tuple[Any, dict[int, str]]:
    """Return the configuration for a task of ``kind``, and the checkpoint's own label names."""
    place = locate(name)
    config = config_of(name, place)
    check_task(name, config, kind)
    repository = repository_of(name)
    if repository != name:
        config.name_or_path = repository  # a path in this machine's hub cache exists nowhere else
    elif Path(place).is_dir():
        # A saved adapter stores this path as its base, and may be loaded from another working folder.
        config.name_or_path = str(Path(place).resolve())
    stored = dict(config.id2label or {})
    if task_kind(kind).new_head:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        if not task_kind(kind).outputs:
            # A checkpoint's regression or several labels would stay in the exported classifier, whose users
            # then get logits or independent sigmoids instead of probabilities of the classes.
            config.problem_type = "single_label_classification"
    _set_dropout(config, dropout)
    return config, stored


def read_config(place: str, kind: str, classes: int = 2, dropout: float | None = None) -> Any:
    """Return the configuration at ``place`` for a task of ``kind``.

    Raises as :func:`~bitrank.models.meta_model.meta_model` does.
    """
    config = config_of(place, place)
    check_task(place, config, kind)
    if task_kind(kind).new_head:
        config.num_labels = len(task_kind(kind).outputs) or classes
        if config.pad_token_id is None:
            config.pad_token_id = 0  # the padding id does not affect shapes
    _set_dropout(config, dropout)
    return config


def _set_dropout(config: Any, dropout: float | None) -> None:
    """Set every dropout rate of ``config``, whatever the architecture calls it; None changes nothing."""
    if dropout is None:
        return
    for key, value in vars(config).items():
        is_rate = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, PretrainedConfig):  # that of a part of the model
            _set_dropout(value, dropout)
        elif is_rate and ("dropout" in key or "pdrop" in key):
            _set_rate(config, key, dropout)
        elif is_rate and "layerdrop" in key:  # whole layers are never dropped more often than before
            _set_rate(config, key, min(value, dropout))


def _set_rate(config: Any, key: str, rate: float) -> None:
    if getattr(config, key) == rate:  # MPT's is the whole number 0, and a fraction is refused there
        return
    try:
        setattr(config, key, rate)
    except Exception as error:  # transformers checks values by errors of many classes
        raise UserError(
            f"{key} of {type(config).__name__} cannot be {rate}, the dropout that was asked for: "
            f"{' '.join(str(error).split())}. Give --set dropout={getattr(config, key)}"
        ) from error
