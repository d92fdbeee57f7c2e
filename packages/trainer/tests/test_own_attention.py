"""Models with another attention formula use their own attention, with a warning."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from bitrank_trainer import OwnAttention, TrainError, implementation, register_attention
from bitrank_trainer.fused import attention, own_attention
from torch import Tensor, nn
from transformers import (
    FalconForCausalLM,
    Gemma2ForCausalLM,
    GPTJForCausalLM,
    GPTNeoForCausalLM,
    LlamaForCausalLM,
    MambaForCausalLM,
    T5ForConditionalGeneration,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2Config
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig
from transformers.models.t5.modeling_t5 import T5Attention, T5Config

SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.fixture(autouse=True)
def reset_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the set of emitted warnings, so that every test receives its warnings."""
    monkeypatch.setattr(own_attention, "_warned", set())


def tensors(shared: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 6, 8), (2, shared, 6, 8), (2, shared, 6, 8))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)  # type: ignore[return-value]


def test_softcap_keyword_selects_the_own_attention() -> None:
    module, (query, key, value) = Gemma2Attention(Gemma2Config(**SIZES), 0).eval(), tensors()
    with pytest.warns(OwnAttention, match="Gemma2Attention attends with the keyword 'softcap'"):
        found, shares = attention.attention(module, query, key, value, None, scaling=0.4, softcap=1.5)
    assert shares is not None
    scores = torch.tanh(query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.4 / 1.5) * 1.5
    expected = (scores.softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-6)


def test_position_bias_keyword_selects_the_own_attention() -> None:
    module, (query, key, value) = T5Attention(T5Config(d_model=32, d_kv=8, num_heads=4)).eval(), tensors(4)
    bias = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    with pytest.warns(OwnAttention, match="'position_bias'"):
        found, _ = attention.attention(module, query, key, value, None, scaling=1.0, position_bias=bias)
    expected = ((query @ key.transpose(2, 3) + bias).softmax(-1) @ value).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-6)


def test_neutral_keywords_keep_the_fused_attention() -> None:
    module, (query, key, value) = LlamaAttention(LlamaConfig(**SIZES), 0).eval(), tensors()
    plain = attention.attention(module, query, key, value, None, scaling=0.4)[0]
    keywords = {
        "position_ids": torch.arange(6),
        "sliding_window": 3,
        "softcap": None,
        "output_attentions": False,
        "is_causal": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(
            attention.attention(module, query, key, value, None, scaling=0.4, **keywords)[0], plain
        )
    with pytest.warns(OwnAttention, match="'output_attentions'"):
        assert (
            attention.attention(module, query, key, value, None, scaling=0.4, output_attentions=True)[1]
            is not None
        )


def eager_attention_forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """Attention of :class:`Tempered`, whose scale is an attribute and no keyword."""
    return ((query @ key.transpose(2, 3) * module.temperature).softmax(-1) @ value).transpose(1, 2), None


class Tempered(nn.Module):
    temperature = 0.1

    def forward(self) -> None: ...


def test_other_formula_is_detected_without_keywords() -> None:
    query, key, value = tensors(4)
    with pytest.warns(OwnAttention, match="Tempered attends with a formula of its own"):
        found, _ = attention.attention(Tempered(), query, key, value, None, scaling=0.4)
    assert torch.equal(found, eager_attention_forward(Tempered(), query, key, value, None)[0])


def test_own_attention_warns_once(recwarn: pytest.WarningsRecorder) -> None:
    module, (query, key, value) = Tempered(), tensors(4)
    for _ in range(3):
        attention.attention(module, query, key, value, None)
    assert len([one for one in recwarn if one.category is OwnAttention]) == 1


def test_formula_comparison_preserves_the_random_state() -> None:
    module, (query, key, value) = LlamaAttention(LlamaConfig(**SIZES), 0).train(), tensors()
    torch.manual_seed(0)
    attention.attention(module, query, key, value, None)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)


def test_unknown_keyword_without_own_attention_raises_train_error() -> None:
    class Bare(torch.nn.Identity):
        forward = torch.nn.Identity.forward

    query, key, value = tensors()
    with pytest.raises(TrainError, match=r"Bare attends with the keyword 'tilt'.*give fused=false"):
        attention.attention(Bare(), query, key, value, None, tilt=1)


@pytest.mark.parametrize(
    "model_class", [GPTNeoForCausalLM, GPTJForCausalLM, FalconForCausalLM, MambaForCausalLM]
)
def test_models_without_attention_lookup_use_eager(model_class: Any) -> None:
    with pytest.warns(
        OwnAttention, match=rf"{model_class.__name__} has attention layers of its own, without 'bitrank'"
    ):
        assert implementation(model_class, register_attention()) == "eager"


def test_supported_implementation_is_returned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            implementation(LlamaForCausalLM, "bitrank")
            == implementation(T5ForConditionalGeneration, "bitrank")
            == "bitrank"
        )
        assert implementation(LlamaForCausalLM, "sdpa") == "sdpa"
        assert implementation(FalconForCausalLM, "eager") == implementation(None, "bitrank") == "eager"
    with pytest.warns(OwnAttention, match="Gemma2ForCausalLM.*'sdpa'"):
        assert implementation(Gemma2ForCausalLM, "sdpa") == "eager"
