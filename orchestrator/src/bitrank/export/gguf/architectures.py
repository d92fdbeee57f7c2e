"""Architectures of transformers that llama.cpp loads: metadata, names of tensors, and order of rows.

An entry is found by the class of the model. llama.cpp computes an architecture in one way, so an entry also
refuses configurations that it would compute differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from bitrank.errors import UserError

Array = np.ndarray[Any, Any]


def _same_order(_config: Any, _name: str) -> Array | None:
    return None


def _no_problem(_config: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    ``describe`` writes the hyperparameters of a configuration. ``row_order`` gives the rows of a module's
    matrix in the order of llama.cpp, by the module's name; None: unchanged. ``problem`` is the reason why
    llama.cpp would compute a configuration differently; None if it does not.
    """

    model: gguf.MODEL_ARCH
    describe: Callable[[gguf.GGUFWriter, Any], None]
    row_order: Callable[[Any, str], Array | None] = _same_order
    problem: Callable[[Any], str | None] = _no_problem

    @property
    def name(self) -> str:
        """The value of ``general.architecture``."""
        return gguf.MODEL_ARCH_NAMES[self.model]

    def tensor_name(self, parameter: str, config: Any) -> str:
        """GGUF's name of ``parameter``. Raises :class:`UserError` if the architecture has none."""
        names = gguf.get_tensor_name_map(self.model, config.num_hidden_layers)
        found = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(
                f"llama.cpp's architecture {self.name} has no tensor for {parameter}; "
                "export with --to merged instead"
            )
        return found


def _describe_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)


def _describe_rotary(writer: gguf.GGUFWriter, config: Any) -> None:
    """Hyperparameters of decoders with RMS norms, gated layers and rotary positions."""
    _describe_sizes(writer, config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = _head_width(config)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _head_width(config: Any) -> int:
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def _describe_gpt2(writer: gguf.GGUFWriter, config: Any) -> None:
    _describe_sizes(writer, config)
    writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _llama_rows(config: Any, name: str) -> Array | None:
    """Rows of query and key: llama.cpp rotates neighbouring pairs, transformers the two halves of a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.rpartition(".")[2])
    if count is None:
        return None
    rows = np.arange(count * _head_width(config))
    return rows.reshape(count, 2, -1).swapaxes(1, 2).reshape(-1)


def _rotary_problem(config: Any) -> str | None:
    rope = dict(getattr(config, "rope_parameters", None) or {})
    kind = rope.get("rope_type")
    if kind not in _ROPES or "rope_theta" not in rope:
        return f"rotary positions of type {kind!r} (supported: {', '.join(_ROPES)})"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "partly rotated heads"
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act!r} (supported: silu)"
    if _slides(config):
        return "attention in a sliding window"
    return None


_ROPES = ("default", "linear")


def _slides(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    return bool(used and window and window < config.max_position_embeddings)


def _gpt2_problem(config: Any) -> str | None:
    if config.activation_function not in {"gelu_new", "gelu_pytorch_tanh"}:
        return f"the activation {config.activation_function!r} (supported: gelu_new)"
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        return "scores scaled in another way than by the width of a head"
    return None


_LLAMA = Architecture(gguf.MODEL_ARCH.LLAMA, _describe_rotary, _llama_rows, _rotary_problem)
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": Architecture(gguf.MODEL_ARCH.QWEN2, _describe_rotary, problem=_rotary_problem),
    "Qwen3ForCausalLM": Architecture(gguf.MODEL_ARCH.QWEN3, _describe_rotary, problem=_rotary_problem),
    "GPT2LMHeadModel": Architecture(gguf.MODEL_ARCH.GPT2, _describe_gpt2, problem=_gpt2_problem),
}


def find_architecture(model_class: str, config: Any) -> Architecture:
    """The architecture of a model of ``model_class`` with ``config``.

    Raises :class:`UserError` if there is none, or if llama.cpp would compute the model differently.
    """
    known = ", ".join(ARCHITECTURES)
    if model_class not in ARCHITECTURES:
        raise UserError(
            f"GGUF export does not support {model_class}; supported: {known}. The programs that read GGUF "
            "generate text: they have no classification heads. Export with --to merged or --to quantized"
        )
    architecture = ARCHITECTURES[model_class]
    problem = architecture.problem(config)
    if problem is not None:
        raise UserError(
            f"this {model_class} has {problem}, which GGUF export does not support; export with --to merged"
        )
    return architecture
