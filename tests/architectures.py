"""Tiny random models of many architectures, made in memory.

They differ in structure; their quality does not matter. Dropout is off, so that repeated forward passes of a
model in training mode are equal.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor

VOCABULARY = 43
_IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
_BODY = {**_IDS, **_SIZE}
_GQA = {**_BODY, "num_key_value_heads": 2}
_WIDE = {**_GQA, "head_dim": 32}
_GPT2 = {**_IDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_LOCAL = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_BART = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 3,
}
_CAPPED = {
    "sliding_window": 8,
    "final_logit_softcapping": 5.0,
    "attn_logit_softcapping": 2.0,
    "query_pre_attn_scalar": 32,
}
_ALTERNATING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_MAMBA = {**_IDS, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
_EXPERTS = {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 32,
}

# name: (architecture, configuration)
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _GQA),
    "llama-bias": (
        "LlamaForCausalLM",
        {**_GQA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama-gelu": ("LlamaForCausalLM", {**_GQA, "hidden_act": "gelu"}),
    "bert": ("BertForSequenceClassification", _BODY),
    "gptneox": ("GPTNeoXForCausalLM", {**_BODY, "rotary_pct": 0.25}),
    "falcon": (
        "FalconForCausalLM",
        {
            **_IDS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "multi_query": True,
            "new_decoder_architecture": False,
            "alibi": False,
        },
    ),
    "bloom": ("BloomForCausalLM", {**_IDS, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "phi3": ("Phi3ForCausalLM", _GQA),
    "gptbigcode": ("GPTBigCodeForCausalLM", _GPT2),
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gptneo": (
        "GPTNeoForCausalLM",
        {**_IDS, **_LOCAL, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "gptj": ("GPTJForCausalLM", {**_GPT2, "rotary_dim": 8}),
    "opt": (
        "OPTForCausalLM",
        {
            **_IDS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
    ),
    "biogpt": ("BioGptForCausalLM", _BODY),
    "gemma": ("GemmaForCausalLM", {**_WIDE, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2ForCausalLM", {**_WIDE, **_CAPPED}),
    "gemma3": ("Gemma3ForCausalLM", {**_WIDE, **_ALTERNATING}),
    "mistral": ("MistralForCausalLM", {**_WIDE, "sliding_window": 8}),
    "qwen2": (
        "Qwen2ForCausalLM",
        {**_GQA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", _WIDE),
    "olmo2": ("Olmo2ForCausalLM", _GQA),
    "stablelm": ("StableLmForCausalLM", _GQA),
    "cohere": ("CohereForCausalLM", {**_GQA, "logit_scale": 0.25}),
    "granite": (
        "GraniteForCausalLM",
        {**_GQA, "logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    ),
    "nemotron": ("NemotronForCausalLM", _GQA),
    "gptoss": (
        "GptOssForCausalLM",
        {**_WIDE, **_ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "mixtral": ("MixtralForCausalLM", {**_GQA, "num_local_experts": 4}),
    "qwen2moe": ("Qwen2MoeForCausalLM", {**_GQA, **_EXPERTS}),
    "mamba": ("MambaForCausalLM", _MAMBA),
    "mamba2": (
        "Mamba2ForCausalLM",
        {**_MAMBA, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {**_T5, "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 3},
    ),
    "t5-gated": (
        "T5ForConditionalGeneration",
        {
            **_T5,
            "vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "eos_token_id": 3,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "bart": ("BartForConditionalGeneration", {**_IDS, **_BART}),
    "bart-scaled": ("BartForSequenceClassification", {**_IDS, **_BART, "scale_embedding": True}),
    "albert": ("AlbertForSequenceClassification", {**_BODY, "embedding_size": 32}),
    "modernbert": (
        "ModernBertForSequenceClassification",
        {
            **_BODY,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
        },
    ),
    "electra": ("ElectraForSequenceClassification", {**_BODY, "embedding_size": 32}),
    "roberta": ("RobertaForSequenceClassification", _BODY),
    "xlmr": ("XLMRobertaForSequenceClassification", _BODY),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 128,
            "max_position_embeddings": 64,
        },
    ),
    "mpnet": ("MPNetForSequenceClassification", _BODY),
}
ARCHITECTURES = tuple(_MODELS)


def configuration(name: str) -> Any:
    """The configuration of model ``name``, without dropout."""
    architecture, options = _MODELS[name]
    config = getattr(hf, architecture).config_class(**options)
    for key, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in key or "pdrop" in key):
            setattr(config, key, 0.0)
    return config


def model_class(name: str) -> Any:
    """The class of model ``name``."""
    return getattr(hf, _MODELS[name][0])


def build(name: str, attention: str = "eager") -> Any:
    """A frozen random model; equal for equal ``name``."""
    torch.manual_seed(0)
    model = model_class(name)._from_config(configuration(name), attn_implementation=attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.15 if parameter.ndim >= 2 else 0.05
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return model.requires_grad_(False)


def inputs(name: str) -> dict[str, Tensor]:
    """Three right-padded sequences longer than the sliding windows; with decoder input where needed."""
    generator = torch.Generator().manual_seed(2)
    ids_BT = torch.randint(4, VOCABULARY, (3, 14), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    for row, length in enumerate((14, 11, 6)):
        ids_BT[row, length:], mask_BT[row, length:] = 0, 0
        if configuration(name).model_type == "bart":
            ids_BT[row, length - 1] = 3  # its classifier reads the last end-of-sentence token
    given = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if model_class(name).__name__.endswith("ForConditionalGeneration"):
        given["decoder_input_ids"] = torch.randint(4, VOCABULARY, (3, 9), generator=generator)
    return given
