"""Check which tasks a model supports before it is loaded; errors are one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from bitrank_quant import block_matrices
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from bitrank.errors import UserError
from bitrank.models.quantized_checkpoints import refuse_quantized_config
from bitrank.spec.embedded_models import EMBEDDED_MODELS
from bitrank.spec.task_kinds import TASK_KINDS, task_kind


def config_of(name: str, place: str) -> Any:
    """Return the configuration of model ``name``, which is at ``place``.

    Code from the model's folder is never run. Raises :class:`UserError` if there is no configuration, or if
    transformers itself does not support it.
    """
    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # transformers checks values by errors of many classes
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{name} needs Python code from its own folder (auto_map in config.json), which bitrank does "
                "not run; give a model whose architecture is part of transformers"
            ) from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # Errors of the hub are long; the second line of an error of validation says what is wrong.
        reason = lines[0] if isinstance(error, OSError | ValueError) else " ".join(map(str.strip, lines))
        raise UserError(
            f"cannot load the model {name!r}: {reason} Give a folder in hub format, a hub id that can be "
            f"reached, or one of {', '.join(EMBEDDED_MODELS)}"
        ) from error


def check_task(name: str, config: Any, kind: str) -> None:
    """Raise :class:`UserError` if a model with ``config`` is quantized or does not support ``kind``."""
    refuse_quantized_config(name, config)
    family, required = config.model_type, task_kind(kind).requirement
    if required.decoder_only and config.is_encoder_decoder:
        raise UserError(
            f"{name} is an encoder-decoder ({family}) and cannot {required.ability}, which continues one "
            f"text; give {required.remedy}, or a classification task"
        )
    if required.decoder_only and family in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(f"{name} is a {family} encoder and cannot {required.ability}; give {required.remedy}")
    if required.encoder_only and config.is_encoder_decoder:
        raise UserError(
            f"{name} is an encoder-decoder ({family}) and cannot {required.ability} without a decoder's "
            f"input; give {required.remedy}"
        )
    if family not in _classes_by_family(kind):
        raise UserError(
            f"{name} cannot {required.ability}: transformers has no {required.model_class} for {family}; "
            f"give {required.remedy}"
        )


def auto_class(kind: str) -> Any:
    """Class of transformers that builds models for tasks of ``kind``."""
    return getattr(transformers, task_kind(kind).auto_model)


def has_new_head(model: nn.Module) -> bool:
    """Whether ``model`` is of a class that gets a new head for some kind of task."""
    classes = {
        name
        for kind, entry in TASK_KINDS.items()
        if entry.new_head
        for name in _classes_by_family(kind).values()
    }
    return type(model).__name__ in classes


def _classes_by_family(kind: str) -> dict[str, str]:
    """Model type → class name, for the model types that transformers has for tasks of ``kind``."""
    return dict(auto_class(kind)._model_mapping._model_mapping)


def check_adaptable(name: str, model: nn.Module) -> None:
    """Raise :class:`UserError` if plans do not apply to ``model``.

    This is the case if it has matrices that a plan cannot name, or that are used outside their layers.
    """
    family = getattr(getattr(model, "config", None), "model_type", "")
    if any(parameter.rpartition(".")[2] == "A_log" for parameter, _ in model.named_parameters()):
        raise UserError(
            f"{name} has state-space layers ({family}), whose kernels multiply by weights outside of their "
            "linear layers, where no format and no adapter would apply; give a transformer such as gpt2"
        )
    if (attention := _attention_without_layers(model)) is not None:
        raise UserError(
            f"{name} has attention whose weights are parameters outside of linear layers ({family}: "
            f"{attention}), where no format and no adapter would apply; give another model, such as minilm"
        )
    if not block_matrices(model):
        raise UserError(
            f"{name} has no row of blocks of its own ({family}): plans name matrices by block, and a model "
            "whose layers share one block, such as ALBERT, has none; give another, such as minilm"
        )


def _attention_without_layers(model: nn.Module) -> str | None:
    """The name of an attention that multiplies by parameters of its own only, as XLNet's does."""
    for name, module in model.named_modules():
        if "att" not in name.rpartition(".")[2]:
            continue
        own = any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
        if own and not any(isinstance(part, nn.Linear) for part in module.modules()):
            return name
    return None


def check_folder(folder: Path) -> None:
    """Raise :class:`UserError` if ``folder`` holds an adapter, for which transformers would load the base."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds a PEFT adapter (adapter_config.json), not a whole model; give its base, or "
            "fold the adapter into it first (bitrank export). Where the folder has a whole model too, move "
            "the adapter's files out of it"
        )
