"""Small random frozen models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

_VOCAB: dict[str, Any] = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _bert() -> Any:
    return BertForSequenceClassification(
        BertConfig(
            **_VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def _gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(**_VOCAB, n_embd=32, n_layer=2, n_head=4, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
    )


def _llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            **_VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        )
    )


MODELS: dict[str, Callable[[], Any]] = {"bert": _bert, "gpt2": _gpt2, "llama": _llama}
BLOCKS = {
    "bert": [
        f"bert.encoder.layer.{n}.{part}"
        for n in range(2)
        for part in ("attention.self.query", "attention.self.value", "intermediate.dense", "output.dense")
    ],
    "gpt2": [
        f"transformer.h.{n}.{part}"
        for n in range(2)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ],
    "llama": [
        f"model.layers.{n}.{part}"
        for n in range(2)
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    ],
}


@pytest.fixture
def make() -> Callable[..., Any]:
    def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
        torch.manual_seed(0)
        return MODELS[name]().to(dtype)

    return build


@pytest.fixture
def blocks() -> dict[str, list[str]]:
    return BLOCKS


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 96, (4, 10), generator=torch.Generator().manual_seed(1))
