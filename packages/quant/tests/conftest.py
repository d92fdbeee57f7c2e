"""Small random models of the architectures that the study uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

_VOCAB: dict[str, Any] = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _bert() -> Any:
    return BertForSequenceClassification(
        BertConfig(
            **_VOCAB,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def _distilbert() -> Any:
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=96, dim=64, n_layers=3, n_heads=4, hidden_dim=128)
    )


def _gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(**_VOCAB, n_embd=64, n_layer=3, n_head=4, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
    )


def _gpt_neo() -> Any:
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            **_VOCAB,
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            intermediate_size=128,
        )
    )


def _llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            **_VOCAB,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            tie_word_embeddings=True,
        )
    )


def _t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=96, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    )


MODELS: dict[str, Callable[[], Any]] = {
    "bert": _bert, "distilbert": _distilbert, "gpt2": _gpt2, "gpt-neo": _gpt_neo, "llama": _llama, "t5": _t5,
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A separate kernel cache for the tests, so that they leave nothing in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("BITRANK_CACHE", str(folder))
        yield folder


@pytest.fixture
def make() -> Callable[..., Any]:
    """``make("gpt2", torch.bfloat16)``: a frozen random model in evaluation mode, the same at every call."""

    def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
        torch.manual_seed(0)
        return MODELS[name]().to(dtype).eval().requires_grad_(False)

    return build


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))


# A busy machine exceeds any deadline of an example; no test depends on the time it takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
