"""Architectures of transformers that mlx-lm loads, and configurations that it computes differently.

mlx-lm computes most architectures in one way, whatever the configuration says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_TANH = ("gelu_pytorch_tanh", "gelu_new")


def _no_problem(_config: Any) -> str | None:
    return None


@dataclass(frozen=True)
class _Family:
    """What mlx-lm computes for a model type.

    ``activations`` are names of its activation in the field ``activation_field`` of a configuration,
    ``rotary`` its types of rotary positions. ``biases``: layers of the attention may have biases.
    ``slides``: attention in a sliding window is computed. ``spans``: it is not, but full attention is
    accepted for texts within the window. ``problem`` names other configurations that are computed
    differently.
    """

    activations: tuple[str, ...] = ("silu", "swish")
    activation_field: str = "hidden_act"
    rotary: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn")
    biases: bool = True
    slides: bool = False
    spans: bool = False
    problem: Callable[[Any], str | None] = _no_problem


def _without_caps(config: Any) -> str | None:
    capped = config.attn_logit_softcapping and config.final_logit_softcapping
    return None if capped else "no soft caps of its logits"


_FAMILIES = {
    # mlx-lm always has the exact GELU here, and transformers its tanh form, which is nearly equal.
    "gemma": _Family(_TANH, rotary=("default",), biases=False),
    "gemma2": _Family(
        _TANH, "hidden_activation", ("default",), biases=False, spans=True, problem=_without_caps
    ),
    "llama": _Family(),
    "mistral": _Family(),
    "olmo2": _Family(),
    "phi3": _Family(rotary=("default",)),
    "qwen2": _Family(),
    "qwen3": _Family(biases=False),
    "smollm3": _Family(slides=True),
}
MODEL_TYPES = tuple(_FAMILIES)  # tests load one of each


def find_problem(config: Any, longest: int) -> str | None:
    """Why mlx-lm would compute texts of up to ``longest`` tokens differently; None if it does not."""
    family = _FAMILIES[config.model_type]
    activation = getattr(config, family.activation_field)
    if activation not in family.activations:
        return f"the activation {activation!r} (supported: {family.activations[0]})"
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in family.rotary:
        return f"rotary positions of type {kind!r} (supported: {', '.join(family.rotary)})"
    if getattr(config, "attention_bias", False) and not family.biases:
        return "biases in its attention"
    window = _window(config, family)
    if window is not None and not (family.spans and longest <= window):
        return f"attention in a sliding window of {window} tokens"
    return family.problem(config)


def window_note(config: Any) -> str | None:
    """A sentence on the sliding window that mlx-lm does not compute; None if there is none."""
    window = _window(config, _FAMILIES[config.model_type])
    if window is None:
        return None
    return (
        f"layers of this model attend to the last {window:,} tokens; in mlx-lm they attend to all, so that "
        "longer texts have other results"
    )


def _window(config: Any, family: _Family) -> int | None:
    """The sliding window of ``config`` if some layers use it, texts can be longer, and mlx-lm ignores it."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    used = kinds is None or "sliding_attention" in kinds
    ignored = window and used and not family.slides and window < config.max_position_embeddings
    return window if ignored else None
