"""Small random models of many architectures in hub format, each with a tokenizer.

The models are untrained; tests use their structure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "film",
    "story",
    "good",
    "bad",
    "bright",
    "dull",
    "house",
    "tree",
    "river",
)
_TOKENS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_ENCODERS = {
    "albert", "bart", "bert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "t5", "xlmr",
    "xlnet",
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers, its config's values, and the attribute to save.

    The attribute is the body of a classifier; empty saves the whole model.
    """

    model: str
    values: dict[str, Any]
    part: str = ""

    @property
    def config(self) -> Any:
        return getattr(transformers, self.model).config_class(**self.values)


def _bart() -> dict[str, Any]:
    layers = {f"{side}_layers": 2 for side in ("encoder", "decoder")}
    heads = {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    widths = {f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")}
    return {
        **_TOKENS,
        **layers,
        **heads,
        **widths,
        "d_model": 32,
        "max_position_embeddings": 64,
        "decoder_start_token_id": 3,
    }


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", {**_TOKENS, **_GROUPED}),
    "llama_tied": Architecture(
        "LlamaForCausalLM",
        {**_TOKENS, **_GROUPED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama_gelu": Architecture("LlamaForCausalLM", {**_TOKENS, **_GROUPED, "hidden_act": "gelu"}),
    "bert": Architecture("BertForSequenceClassification", {**_TOKENS, **_SIZES}, "bert"),
    "gptneox": Architecture("GPTNeoXForCausalLM", {**_TOKENS, **_SIZES, "rotary_pct": 0.25}),
    "falcon": Architecture(
        "FalconForCausalLM",
        {
            **_TOKENS,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "multi_query": True,
            "alibi": False,
        },
    ),
    "bloom": Architecture("BloomForCausalLM", {**_TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "phi3": Architecture("Phi3ForCausalLM", {**_TOKENS, **_GROUPED}),
    "gptbigcode": Architecture("GPTBigCodeForCausalLM", {**_TOKENS, **_GPT2}),
    "gpt2": Architecture("GPT2LMHeadModel", {**_TOKENS, **_GPT2}),
    "gptneo": Architecture(
        "GPTNeoForCausalLM",
        {
            **_TOKENS,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 64,
            "intermediate_size": 64,
        },
    ),
    "opt": Architecture(
        "OPTForCausalLM",
        {
            **_TOKENS,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
        },
    ),
    "gemma": Architecture(
        "GemmaForCausalLM", {**_TOKENS, **_SIZES, "num_key_value_heads": 1, "head_dim": 16}
    ),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        {
            **_TOKENS,
            **_GROUPED,
            "head_dim": 16,
            "sliding_window": 8,
            "final_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 16,
        },
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        {
            **_TOKENS,
            **_GROUPED,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "mistral": Architecture(
        "MistralForCausalLM", {**_TOKENS, **_GROUPED, "head_dim": 16, "sliding_window": 8}
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", {**_TOKENS, **_GROUPED, "use_sliding_window": True, "sliding_window": 8}
    ),
    "qwen3": Architecture("Qwen3ForCausalLM", {**_TOKENS, **_GROUPED, "head_dim": 16}),
    "olmo2": Architecture("Olmo2ForCausalLM", {**_TOKENS, **_GROUPED}),
    "stablelm": Architecture("StableLmForCausalLM", {**_TOKENS, **_GROUPED}),
    "mamba": Architecture(
        "MambaForCausalLM", {**_TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    ),
    "mamba2": Architecture(
        "Mamba2ForCausalLM",
        {
            **_TOKENS,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    "mpt": Architecture(
        "MptForCausalLM", {**_TOKENS, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
    ),
    "mixtral": Architecture("MixtralForCausalLM", {**_TOKENS, **_GROUPED, "num_local_experts": 4}),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        {
            "vocab_size": len(WORDS),
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "pad_token_id": 0,
            "eos_token_id": 3,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": Architecture("BartForConditionalGeneration", _bart()),
    "albert": Architecture(
        "AlbertForSequenceClassification", {**_TOKENS, **_SIZES, "embedding_size": 16}, "albert"
    ),
    "modernbert": Architecture(
        "ModernBertForSequenceClassification",
        {
            **_TOKENS,
            **_SIZES,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
        },
        "model",
    ),
    "electra": Architecture(
        "ElectraForSequenceClassification", {**_TOKENS, **_SIZES, "embedding_size": 16}, "electra"
    ),
    "roberta": Architecture("RobertaForSequenceClassification", {**_TOKENS, **_SIZES}, "roberta"),
    "xlmr": Architecture("XLMRobertaForSequenceClassification", {**_TOKENS, **_SIZES}, "roberta"),
    "distilbert": Architecture(
        "DistilBertForSequenceClassification",
        {
            "vocab_size": len(WORDS),
            "pad_token_id": 0,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
            "max_position_embeddings": 64,
        },
        "distilbert",
    ),
    "mpnet": Architecture("MPNetForSequenceClassification", {**_TOKENS, **_SIZES}, "mpnet"),
    "xlnet": Architecture(
        "XLNetForSequenceClassification",
        {**_TOKENS, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
        "transformer",
    ),
}
DECODERS = tuple(name for name in ARCHITECTURES if name not in _ENCODERS)
CLASSIFIERS = tuple(name for name in ARCHITECTURES if not name.startswith("mamba"))


def write(folder: Path, name: str, change: Callable[[Any], None] = lambda _: None, **values: Any) -> Path:
    """Write the model ``name`` (one of :data:`ARCHITECTURES`) and its tokenizer into ``folder``; return it.

    ``values`` override its config, and ``change`` edits its weights.
    """
    made = ARCHITECTURES[name]
    config = getattr(transformers, made.model).config_class(**{**made.values, **values})
    torch.manual_seed(0)
    model = getattr(transformers, made.model)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)  # norms and biases too, so that each unread one shows
        change(model)
    part = (
        getattr(model, made.part)
        if made.part and "num_labels" not in values and "id2label" not in values
        else model
    )
    part.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a word-level tokenizer into ``folder``."""
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
    )
    made.save_pretrained(folder)
