"""Tiny random models in hub format with a word tokenizer, for smoke tests. They are untrained.

Libraries are imported when a model is built, because the command line only needs the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_WORDS = (
    "the",
    "is",
    "and",
    ".",
    "film",
    "story",
    "cast",
    "score",
    "plot",
    "ending",
    "scene",
    "script",
    "good",
    "lovely",
    "bright",
    "fine",
    "superb",
    "bad",
    "dull",
    "poor",
    "weak",
    "awful",
)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {word: number for number, word in enumerate((*_SPECIAL, *_WORDS))}
_TOKENS: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def _bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            **_TOKENS,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=64,
        )
    ).bert


def _masked() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    tokens = {**_TOKENS, "vocab_size": len(VOCABULARY) + 1}  # one more for the mask
    # The head is a frozen random one: with the usual 0.02 its logits would differ too little to learn.
    config = BertConfig(**tokens, **sizes, max_position_embeddings=64, initializer_range=0.2)
    return BertForMaskedLM(config)


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            **_TOKENS,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=128,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**_TOKENS, n_embd=64, n_layer=3, n_head=4, n_positions=64))


def _t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    ids = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "eos_token_id": 3}
    return T5ForConditionalGeneration(T5Config(**ids, **sizes, decoder_start_token_id=0))


def _bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    sizes |= {name.replace("encoder", "decoder"): size for name, size in sizes.items()}
    ends = {"decoder_start_token_id": 3, "forced_eos_token_id": 3}
    config = BartConfig(**_TOKENS, **sizes, **ends, d_model=64, max_position_embeddings=64)
    return BartForConditionalGeneration(config)


TINY = {
    "tiny-bert": _bert,
    "tiny-llama": _llama,
    "tiny-gpt2": _gpt2,
    "tiny-t5": _t5,
    "tiny-bart": _bart,
    "tiny-mlm": _masked,
}


_WITH_MASK = {"tiny-mlm"}  # models whose tokenizer has a mask token, after the words


def build_tiny(name: str, folder: Path) -> None:
    """Write the tiny model ``name`` (one of :data:`TINY`) and its tokenizer into ``folder``.

    The weights are always the same.
    """
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        TINY[name]().save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    if name in _WITH_MASK:
        special["mask_token"] = "[MASK]"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
