"""Rank plans become PEFT adapters with the planned ranks, scale and dtypes, which stock PEFT loads."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    AdaLora,
    AdapterError,
    AdapterScale,
    adapted,
    attach_adalora,
    attach_lora,
    role_ranks,
    uniform_ranks,
)
from peft import PeftModel


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_each_matrix_has_its_planned_rank_and_the_common_scale(make, blocks, name: str) -> None:
    ranks = {matrix: 2 + n % 5 for n, matrix in enumerate(blocks[name])}
    model = attach_lora(make(name), ranks, scale=AdapterScale(3.0, "constant"))
    layers = dict(adapted(model))
    assert {matrix: layer.lora_A["default"].weight.shape[0] for matrix, layer in layers.items()} == ranks
    assert {layer.scaling["default"] for layer in layers.values()} == {3.0}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_new_adapters_do_not_change_the_output(make, blocks, ids, name: str) -> None:
    plain = make(name).eval()
    before = plain(input_ids=ids).logits.detach()
    model = attach_lora(plain, uniform_ranks(blocks[name], 4)).eval()
    assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-5)
    model = attach_adalora(make(name), blocks[name], AdaLora(6, 2), total_steps=50).eval()
    assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-5)


def test_only_adapters_and_the_new_head_train_in_fp32(make, blocks) -> None:
    model = attach_lora(make("bert", torch.bfloat16), uniform_ranks(blocks["bert"], 4), heads=["classifier"])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in trained)
    assert any("classifier" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adalora_rank_count_is_not_trainable(make, blocks, dtype) -> None:
    """PEFT 0.21 leaves it trainable on a 16-bit base."""
    model = attach_adalora(make("llama", dtype), blocks["llama"], AdaLora(6, 2), total_steps=50)
    assert not [name for name, p in model.named_parameters() if p.requires_grad and "ranknum" in name]


def test_16_bit_model_runs_forward_and_backward(make, blocks, ids) -> None:
    for name, heads in (("bert", ["classifier"]), ("gpt2", []), ("llama", [])):
        model = attach_lora(make(name, torch.bfloat16), uniform_ranks(blocks[name], 4), heads=heads)
        model(input_ids=ids).logits.float().square().mean().backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)


def test_norms_compute_in_fp32(make, blocks) -> None:
    model = attach_lora(make("llama", torch.bfloat16), uniform_ranks(blocks["llama"], 2))
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert norms and {p.dtype for m in norms for p in m.parameters()} == {torch.float32}
    assert norms[0](torch.ones(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_initialization_depends_on_the_seed_only(make, blocks) -> None:
    first = attach_lora(make("bert"), uniform_ranks(blocks["bert"], 4), seed=3)
    torch.randn(1000)
    second = attach_lora(make("bert"), uniform_ranks(blocks["bert"], 4), seed=3)
    for (_, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b)


def test_saved_adapter_loads_in_stock_peft(make, blocks, ids, tmp_path) -> None:
    ranks = {matrix: 2 + n % 3 for n, matrix in enumerate(blocks["gpt2"])}
    model = attach_lora(make("gpt2"), ranks).eval()
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_B["default"].weight.normal_()
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make("gpt2"), tmp_path).eval()
    assert torch.allclose(stock(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "rank plan is empty"),
        (
            {"bert.encoder.layer.0.attention.self.qeury": 4},
            r"this model lacks; nearest: bert\.encoder\.layer\.0\.attention\.self\.query",
        ),
        ({"bert.encoder.layer.0.attention.self.query": 33}, "rank 33 does not fit .* give 0 to 32"),
        ({"bert.encoder.layer.0.attention.self.query": 0}, "rank 0 everywhere: there is nothing to train"),
    ],
)
def test_invalid_plans_raise_adapter_error(make, plan, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        attach_lora(make("bert"), plan)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_matrices_of_rank_zero_get_no_adapter(make, blocks, ids, tmp_path, name: str) -> None:
    ranks = {matrix: n % 3 for n, matrix in enumerate(blocks[name])}
    model = attach_lora(make(name), ranks, heads=["classifier"] if name == "bert" else []).eval()
    layers = dict(adapted(model))
    assert set(layers) == {matrix for matrix, rank in ranks.items() if rank}
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_B["default"].weight.normal_()
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make(name), tmp_path).eval()
    assert torch.allclose(stock(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def test_rank_zero_everywhere_trains_the_head_alone(make, blocks, ids, tmp_path) -> None:
    model = attach_lora(make("bert"), dict.fromkeys(blocks["bert"], 0), heads=["classifier"]).eval()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("classifier.modules_to_save" in name for name in trained)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make("bert"), tmp_path).eval()
    assert torch.allclose(stock(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def test_invalid_schedules_raise_adapter_error(make, blocks) -> None:
    with pytest.raises(AdapterError, match="target_r < init_r, got init_r=4 and target_r=4"):
        AdaLora(4, 4)
    with pytest.raises(AdapterError, match=r"warm \+ final < 1"):
        AdaLora(8, 4, warm=0.5, final=0.5)
    with pytest.raises(AdapterError, match="2 steps are too few"):
        attach_adalora(make("bert"), blocks["bert"], AdaLora(6, 2), total_steps=2)


def test_role_ranks_assign_ranks_by_role() -> None:
    assert role_ranks({"a": "attention", "b": "ffn"}, {"attention": 6, "ffn": 10}) == {"a": 6, "b": 10}
    with pytest.raises(AdapterError, match="no rank is given for the role 'cross-attention'"):
        role_ranks({"a": "cross-attention"}, {"attention": 6})
