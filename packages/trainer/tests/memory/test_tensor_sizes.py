"""Predicted tensor sizes bound a real pass from above; passes are as large as the bound permits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bitrank_trainer import (
    MPS_BYTES,
    OBJECTIVES,
    Shapes,
    TrainError,
    micro_batches,
    register_attention,
    safe_tokens,
    shapes_of,
    tensor_bytes,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

SHAPES = st.builds(
    Shapes,
    hidden=st.integers(1, 8192),
    widest=st.integers(1, 40_000),
    heads=st.integers(1, 128),
    head=st.integers(0, 300_000),
    blockwise=st.booleans(),
    wide_bytes=st.sampled_from([2, 4]),
    weight=st.integers(1, 2**31),
)


@given(shapes=SHAPES, rows=st.integers(1, 512), length=st.integers(1, 8192), data=st.data())
def test_safe_tokens_is_the_largest_number_within_the_bound(
    shapes: Shapes, rows: int, length: int, data: Any
) -> None:
    limit = data.draw(st.sampled_from([2**24, 2**28, MPS_BYTES]))
    try:
        tokens = safe_tokens(shapes, rows, length, limit)
    except TrainError:
        assert max(tensor_bytes(shapes, 1, length).values()) > limit
        return
    fitting = rows if tokens is None else tokens // length
    assert max(tensor_bytes(shapes, fitting, length).values()) <= limit
    assert fitting == rows or max(tensor_bytes(shapes, fitting + 1, length).values()) > limit


@given(shapes=SHAPES, rows=st.integers(2, 64), length=st.integers(2, 512), width=st.integers(1, 512))
def test_micro_batches_of_any_width_stay_within_the_bound(
    shapes: Shapes, rows: int, length: int, width: int
) -> None:
    limit, width = 2**24, min(width, length)
    try:
        tokens = safe_tokens(shapes, rows, length, limit)
    except TrainError:
        return
    ids = np.zeros((rows, width), dtype=np.int64)
    for part in micro_batches({"input_ids": ids, "attention_mask": np.ones_like(ids)}, tokens):
        assert max(tensor_bytes(shapes, *part["input_ids"].shape).values()) <= limit


def test_safe_tokens_of_known_models() -> None:
    """BERT-base at 512 tokens: attention scores of 12 heads dominate; 341 sequences fill 2³² bytes."""
    bert = Shapes(
        hidden=768, widest=3072, heads=12, head=0, blockwise=False, wide_bytes=2, weight=30522 * 768 * 2
    )
    assert tensor_bytes(bert, 32, 512)["attention scores"] == 32 * 12 * 512 * 512 * 4
    assert safe_tokens(bert, 32, 512) is None
    assert safe_tokens(bert, 400, 512) == 341 * 512
    llama = Shapes(
        hidden=4096,
        widest=14336,
        heads=32,
        head=128_256,
        blockwise=False,
        wide_bytes=2,
        weight=128_256 * 4096 * 2,
    )
    assert safe_tokens(llama, 8, 2048) == 4 * 2048  # whole logits
    with pytest.raises(
        TrainError,
        match=r"one sequence of 16384 tokens makes a tensor of 34,359,738,368 bytes \(attention scores\)",
    ):
        safe_tokens(llama, 1, 16384)
    with pytest.raises(TrainError, match=r"largest weight.*a smaller model"):
        safe_tokens(Shapes(1, 1, 1, 0, False, 2, 2**33), 1, 1)


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor of any operation, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.bytes = max(
            [
                self.bytes,
                *(t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, torch.Tensor)),
            ]
        )
        return out


_SMALL: dict[str, Any] = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "bert": lambda **w: BertForSequenceClassification(
        BertConfig(
            **_SMALL, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, **w
        )
    ),
    "llama": lambda **w: LlamaForCausalLM(
        LlamaConfig(
            **_SMALL, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, **w
        )
    ),
    "gpt2": lambda **w: GPT2LMHeadModel(
        GPT2Config(**_SMALL, n_embd=64, n_layer=2, n_head=4, n_positions=256, **w)
    ),
    "wide vocabulary": lambda **w: LlamaForCausalLM(
        LlamaConfig(
            **{**_SMALL, "vocab_size": 4000},
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            **w,
        )
    ),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "length"), [(3, 8), (2, 128)])
@pytest.mark.parametrize("name", MODELS)
def test_no_tensor_of_a_real_pass_exceeds_the_prediction(
    name: str, fused: bool, dtype: torch.dtype, rows: int, length: int
) -> None:
    """Includes the first block's backward pass. Tight for fp32 scores (no dropout, fused)."""
    model: Any = (
        MODELS[name](attn_implementation=register_attention() if fused else "eager")
        .to(dtype)
        .requires_grad_(False)
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for part in model.modules():
        if hasattr(part, "attention_dropout") and isinstance(part.attention_dropout, float):
            part.attention_dropout = 0.0
    for parameter in model.get_input_embeddings().parameters():
        parameter.requires_grad_(name == "bert" or not fused)
    if fused and name != "bert":
        model.base_model.get_submodule(
            "layers.0" if hasattr(model.base_model, "layers") else "h.0"
        ).requires_grad_(True)
    kind = "classification" if name == "bert" else "language-modelling"
    ids = np.random.default_rng(0).integers(3, 90, (rows, length))
    labels = np.zeros(rows, dtype=np.int64) if name == "bert" else ids
    batch = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "labels": labels,
        "index": np.arange(rows),
    }
    predicted = tensor_bytes(shapes_of(model, fused, dtype.itemsize), rows, length)
    with Largest() as largest:
        objective = OBJECTIVES[kind] if fused else OBJECTIVES[kind].plain()
        objective.loss(model.train(), batch, "cpu").backward()
    assert largest.bytes <= max(predicted.values()), predicted
    if length == 128 and (fused or dtype == torch.float32):
        assert largest.bytes >= 0.9 * max(predicted.values()), (largest.bytes, predicted)
