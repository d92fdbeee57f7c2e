"""Whole models with compiled row kernels equal plain torch and the unfused model."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from bitrank.models.fuse import attention_for, fuse_model
from bitrank_adapters import AdapterScale, attach_lora, uniform_ranks
from bitrank_adapters.fused.norms import norms_in_fp32
from bitrank_quant import block_matrices, kernels
from bitrank_quant.kernels import rows
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def llama(attention: str) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, attn_implementation=attention))


def bert(attention: str) -> nn.Module:
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**SIZES, **quiet, attn_implementation=attention))


def adapted_model(make: Any, dtype: torch.dtype, fused: bool) -> Any:
    torch.manual_seed(0)
    model = make(attention_for("cpu", fused)).to(dtype)
    norms_in_fp32(model)
    adapted = attach_lora(
        model, uniform_ranks([matrix.name for matrix in block_matrices(model)], 4), scale=AdapterScale(1.3)
    ).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if fused:
        fuse_model(adapted)
    return adapted


def logits_and_gradients(make: Any, dtype: torch.dtype, fused: bool) -> tuple[Tensor, Tensor]:
    """Return the logits, and the concatenated gradients of all adapters."""
    adapted = adapted_model(make, dtype, fused)
    ids = torch.randint(1, 50, (3, 21), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, 13:] = 0
    logits = adapted(input_ids=ids, attention_mask=mask).logits.float()
    logits = logits[mask.bool()] if logits.dim() == 3 else logits
    logits.square().mean().backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None])


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return a counter of the calls of each compiled kernel."""
    if not rows.serves(torch.zeros(1)):
        pytest.skip("no compiled passes over rows here")
    counted, call = Counter[str](), rows._call

    def counted_call(name: str, *arguments: Any) -> None:
        counted[name.removeprefix("bitrank_")] += 1
        call(name, *arguments)

    monkeypatch.setattr(rows, "_call", counted_call)
    return counted


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.04)])
@pytest.mark.parametrize("make", [llama, bert])
def test_compiled_model_equals_plain_and_unfused_ones_up_to_rounding(
    make: Any,
    dtype: torch.dtype,
    tolerance: float,
    kernel_calls: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = logits_and_gradients(make, dtype, fused=True)
    attention_calls = {"softmax": 6, "softmax_gradient": 3}  # recomputed: more keys than head dimensions
    llama_calls = {"rms": 7, "rms_gradient": 6, "swiglu": 6, "swiglu_gradient": 3, "rotate": 12}
    assert kernel_calls == {**attention_calls, **(llama_calls if make is llama else {})}
    kernel_calls.clear()
    monkeypatch.setattr(kernels, "switched_off", lambda: True)
    plain = logits_and_gradients(make, dtype, fused=True)
    assert not kernel_calls
    for other in (plain, logits_and_gradients(make, dtype, fused=False)):
        for found, expected in zip(compiled, other, strict=True):
            assert float((found - expected).norm()) < tolerance * float(expected.norm())


def test_generation_with_a_cache_equals_that_of_the_unfused_model(kernel_calls: Counter[str]) -> None:
    """Generates one position at a time, with more keys than queries, for sentences of two lengths."""
    ids = torch.randint(1, 50, (2, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    made = [
        adapted_model(llama, torch.float32, fused).eval().generate(ids, **options) for fused in (True, False)
    ]
    assert torch.equal(*made) and kernel_calls["rotate"] == 8 * 2 * 3 and kernel_calls["softmax"] == 8 * 3


@pytest.mark.parametrize("make", [llama, bert])
def test_model_with_compiled_kernels_can_be_copied_and_pickled(make: Any) -> None:
    model, ids = adapted_model(make, torch.float32, fused=True).eval(), torch.arange(1, 9)[None]
    logits = model(input_ids=ids).logits
    assert torch.equal(copy.deepcopy(model)(input_ids=ids).logits, logits)
    assert torch.allclose(pickle.loads(pickle.dumps(model))(input_ids=ids).logits, logits, atol=1e-5)
