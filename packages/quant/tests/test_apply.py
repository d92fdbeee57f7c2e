"""Plans applied to real models: mixed formats, Conv1D, tied weights, byte counts, and refused plans."""

from __future__ import annotations

import pytest
import torch
from bitrank_quant import (
    FORMATS,
    QuantEmbedding,
    QuantError,
    QuantLinear,
    apply_precision,
    block_matrices,
    parse_format,
    stored_bytes,
    weight_matrices,
)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_sixteen_bits_change_nothing(make, ids, name: str) -> None:
    model = make(name)
    before = logits(model, ids)
    plan = {m.name: "fp32" for m in weight_matrices(model) if m.tied_to is None}
    apply_precision(model, plan, compute_dtype=torch.float32)
    assert torch.allclose(logits(model, ids), before, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "gpt-neo", "llama"])
def test_a_mixed_plan_equals_quantizing_the_weights_by_hand(make, ids, name: str) -> None:
    """Decoded codes as plain weights give the same logits, so modules and biases are wired correctly."""
    model, oracle = make(name), make(name)
    formats = {"attention": "int8", "ffn": "nf4", "embedding": "int8"}
    plan = {m.name: formats[m.role] for m in weight_matrices(model) if m.role in formats}
    apply_precision(model, plan, compute_dtype=torch.float32)
    for m in weight_matrices(oracle):
        if m.name in plan:
            _round_in_place(oracle.get_submodule(m.name), plan[m.name])
    assert torch.allclose(logits(model, ids), logits(oracle, ids), atol=2e-4)


def _round_in_place(module, text: str) -> None:
    conv = type(module).__name__ == "Conv1D"
    weight = module.weight.data.T if conv else module.weight.data
    fmt = parse_format(text)
    rounded = fmt.decode(fmt.encode(weight), tuple(weight.shape), torch.float32)
    module.weight.data.copy_(rounded.T if conv else rounded)


@pytest.mark.parametrize("backend", ["auto", "cpu-4bit", "cpu-int8", "quanto-int4", "quanto-int8", "none"])
def test_an_override_replaces_low_bit_formats_and_reports_the_stored_ones(make, backend: str) -> None:
    model = make("llama", torch.bfloat16)
    plan = {m.name: "nf4-dq" if m.role == "ffn" else "bf16" for m in block_matrices(model)}
    applied = apply_precision(model, plan, quant_backend=backend)
    stored = {applied[m.name].format for m in block_matrices(model) if m.role == "ffn"}
    expected = {
        "auto": "nf4-dq",
        "cpu-4bit": "nf4-dq",
        "cpu-int8": "int8",
        "quanto-int4": "int4-g64",
        "quanto-int8": "int8",
        "none": "bf16",
    }
    assert stored == {expected[backend]}
    assert {applied[m.name].format for m in block_matrices(model) if m.role == "attention"} == {"bf16"}


@pytest.mark.parametrize("text", [t for t, f in FORMATS.items() if f.bits < 16])
def test_stored_bytes_are_those_of_the_format(make, text: str) -> None:
    """Counted bytes shrink by exactly the format's savings, apart from bitsandbytes' code tables.

    These take 64 bytes per matrix, or 1,088 with double quantization.
    """
    model = make("bert", torch.bfloat16)
    before = stored_bytes(model).total
    assert before == sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    plan = {m.name: text for m in block_matrices(model)}
    applied = apply_precision(model, plan)
    shapes = {m.name: m.shape for m in block_matrices(make("bert"))}
    fmt = parse_format(text)
    saved = sum(2 * o * i - fmt.nbytes((o, i)) for o, i in shapes.values())
    tables = stored_bytes(model).total - (before - saved)
    if {done.backend for done in applied.values()} == {"bitsandbytes"} and fmt.bits == 4:
        assert tables == (1088 if text.endswith("dq") else 64) * len(shapes)
    else:
        assert tables == 0


@pytest.mark.parametrize("backend", ["quanto-int8", "quanto-int4"])
def test_stored_bytes_include_the_inner_tensors_of_quanto(make, backend: str) -> None:
    model = make("bert", torch.bfloat16)
    apply_precision(model, {m.name: "nf4" for m in block_matrices(model)}, quant_backend=backend)
    layer = model.bert.encoder.layer[0].intermediate.dense
    counted = stored_bytes(model).modules["bert.encoder.layer.0.intermediate.dense"]
    codes = 64 * 128 if backend == "quanto-int8" else 64 * 128 // 2
    assert codes < counted < codes * 1.25 + layer.bias.nbytes + 16


def test_a_tied_head_follows_its_embedding_and_shares_its_bytes(make, ids) -> None:
    model = make("llama", torch.bfloat16)
    apply_precision(model, {"model.embed_tokens": "int8"})
    assert isinstance(model.model.embed_tokens, QuantEmbedding)
    assert isinstance(model.lm_head, QuantLinear)
    assert model.lm_head.quantized is model.model.embed_tokens.quantized
    assert stored_bytes(model).modules["model.embed_tokens.quantized"] == 96 * 64 + 4 * 96
    assert torch.isfinite(logits(model, ids)).all()


def test_invalid_plans_raise_and_leave_the_model_unchanged(make, ids) -> None:
    model = make("llama")
    before = logits(model, ids)
    with pytest.raises(QuantError, match=r"q_porj.*nearest: model\.layers\.0\.self_attn\.q_proj"):
        apply_precision(
            model, {"model.layers.1.mlp.up_proj": "int8", "model.layers.0.self_attn.q_porj": "nf4"}
        )
    with pytest.raises(QuantError, match="shares its weight"):
        apply_precision(model, {"model.embed_tokens": "int8", "lm_head": "nf4"})
    with pytest.raises(
        QuantError, match=r"model\.embed_tokens cannot be stored as int3-g22: rows of 64 weights"
    ):
        apply_precision(model, {"model.layers.0.mlp.up_proj": "int8", "model.embed_tokens": "int3-g22"})
    with pytest.raises(QuantError, match="unknown format"):
        apply_precision(model, {"model.layers.0.mlp.up_proj": "int1"})
    assert torch.equal(logits(model, ids), before)
    apply_precision(model, {"model.layers.0.mlp.up_proj": "int3-g22"})


def test_peft_flags_are_set_for_both_bitsandbytes_kinds(make) -> None:
    model = make("llama", torch.bfloat16)
    apply_precision(
        model, {m.name: "llm-int8" if m.role == "attention" else "nf4" for m in block_matrices(model)}
    )
    assert model.is_loaded_in_4bit and model.is_loaded_in_8bit
