"""Fused rotary embedding equals the plain one, is local to a model and falls back if not served."""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

import pytest
import torch
from bitrank_trainer import fuse_rotary
from plain_rows import PlainRows
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama import modeling_llama

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def qwen() -> Any:
    """A model that normalizes queries and keys before the rotation."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))


def trained(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding shifts the positions
    logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    logits.square().mean().backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("make", [llama, qwen])
def test_fused_rotary_gives_the_same_logits_and_gradients(make: Any) -> None:
    plain_logits, plain_grad = trained(make())
    model, rows = make(), PlainRows()
    fuse_rotary(model, rows)
    logits, grad = trained(model)
    assert sorted(rows.calls) == ["back"] * 4 + ["rotate"] * 4  # query and key of two layers
    torch.testing.assert_close(logits, plain_logits)
    torch.testing.assert_close(grad, plain_grad)


def test_generation_with_a_cache_equals_plain_generation() -> None:
    ids = torch.tensor([[5, 6, 7]])
    expected = llama().eval().generate(ids, max_new_tokens=6, do_sample=False)
    model, rows = llama().eval(), PlainRows()
    fuse_rotary(model, rows)
    assert (
        torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), expected)
        and "rotate" in rows.calls
    )


def test_other_models_keep_the_plain_rotary() -> None:
    before = modeling_llama.apply_rotary_pos_emb
    rows = PlainRows()
    fuse_rotary(llama(), rows)
    other = llama()
    trained(other)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2))
    fuse_rotary(gpt, rows)
    trained(gpt)
    assert modeling_llama.apply_rotary_pos_emb is before and not rows.calls


def test_foreign_rotation_of_the_same_name_is_not_replaced() -> None:
    model, rows = llama(), PlainRows()
    named = {**modeling_llama.__dict__, "__name__": "somebody.elses_code"}
    for layer in model.model.layers:
        forward = type(layer.self_attn).forward
        layer.self_attn.forward = MethodType(
            FunctionType(forward.__code__, named, forward.__name__, forward.__defaults__), layer.self_attn
        )
    fuse_rotary(model, rows)
    trained(model)
    assert not rows.calls


def test_unserved_tensors_use_the_plain_rotary() -> None:
    model, rows = llama(), PlainRows(serving=False)
    fuse_rotary(model, rows)
    assert torch.equal(trained(model)[0], trained(llama())[0]) and not rows.calls
