"""Fused head and attention equal the plain formulas, in losses and gradients."""

from __future__ import annotations

import pytest
import torch
from bitrank_trainer import OBJECTIVES, register_attention
from bitrank_trainer.fused import attention, lm_head
from plain_rows import PlainRows
from torch.nn import functional as F
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

SIZES = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama(kind: str, dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
    )
    config._attn_implementation = kind
    return LlamaForCausalLM(config).to(dtype).train()


def gpt2(kind: str, dtype=torch.float32):
    torch.manual_seed(0)
    config = GPT2Config(
        **SIZES, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
    )
    config._attn_implementation = kind
    return GPT2LMHeadModel(config).to(dtype).train()


def bert(kind: str, dtype=torch.float32):
    torch.manual_seed(0)
    config = BertConfig(
        **SIZES,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    config._attn_implementation = kind
    return BertModel(config).to(dtype).train()


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 50, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    return ids, mask


@pytest.mark.parametrize("build", [llama, gpt2, bert])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("kept", [0, 2], ids=["recomputed", "saved"])
@pytest.mark.parametrize("given", [False, True], ids=["torch", "row kernels"])
def test_attention_equals_eager_attention(
    build, dtype, tolerance: float, kept: int, given: bool, monkeypatch
) -> None:
    monkeypatch.setattr(attention, "_KEPT", kept)
    ids, mask = padded()
    results, rows = [], PlainRows()
    for name in ("eager", register_attention(rows if given else None)):
        model = build(name, dtype)
        out = model(input_ids=ids, attention_mask=mask)
        values = (out.logits if hasattr(out, "logits") else out.last_hidden_state).float()[mask.bool()]
        values.square().mean().backward()
        results.append(
            (
                values.detach(),
                torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None]),
            )
        )
    (plain, plain_grad), (fused, fused_grad) = results
    assert (fused - plain).norm() < tolerance * plain.norm()
    assert (fused_grad - plain_grad).norm() < tolerance * plain_grad.norm()
    if given:
        assert (
            rows.calls.count("softmax_") == (2 if kept else 4) and rows.calls.count("softmax_gradient_") == 2
        )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 4, 6, 6), torch.float32), ((1, 4, 1, 6), torch.float32), ((2, 1, 6, 6), torch.float64)],
)
def test_unsupported_mask_uses_torch_operations(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Per-head masks, and masks whose dtype differs from the scores': its minimum would be infinite there."""
    rows, module = PlainRows(), torch.nn.Module()
    q, mask = torch.randn(2, 4, 6, 8), torch.randn(shape, dtype=dtype)
    given, _ = attention.attention(module, q, q, q, mask, rows=rows)
    assert torch.equal(given, attention.attention(module, q, q, q, mask)[0]) and not rows.calls
    read = torch.randn(2, 1, 1, 6)
    attention.attention(module, q, q, q, read, rows=rows)
    assert rows.calls == ["softmax_"]


@pytest.mark.parametrize(("length", "kept"), [(8, True), (9, False)])
def test_probabilities_are_saved_if_no_larger_than_q(length: int, kept: bool) -> None:
    shapes: list[torch.Size] = []
    q, k, v = (torch.randn(2, heads, length, 8, requires_grad=True) for heads in (4, 2, 2))
    mask = torch.zeros(1, 1, length, length)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: shapes.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        attention.attention(torch.nn.Module(), q, k, v, mask)[0].sum().backward()
    others = {8: 1}.get(length, 0)  # at 8 keys the query has the same shape
    assert shapes.count(torch.Size((4, 2 * length, length))) == others + kept


def test_dropout_acts_in_training_mode_only() -> None:
    module = torch.nn.Module().train()
    q = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    first, second = (
        attention.attention(module, q, q, q, None, dropout=0.5)[0],
        attention.attention(module, q, q, q, None, dropout=0.5)[0],
    )
    assert not torch.equal(first, second)
    module.eval()
    assert torch.equal(
        attention.attention(module, q, q, q, None, dropout=0.5)[0],
        attention.attention(module, q, q, q, None)[0],
    )


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("block_bytes", [4 * 50 * 3, 2**25])
def test_blockwise_head_equals_whole_head(build, block_bytes: int, monkeypatch) -> None:
    monkeypatch.setattr(lm_head, "_BLOCK_BYTES", block_bytes)
    ids, mask = padded()
    data = {
        "input_ids": ids.numpy(),
        "attention_mask": mask.numpy(),
        "labels": torch.where(mask == 1, ids, -100).numpy(),
        "index": torch.arange(3).numpy(),
    }
    results = []
    fused_objective = OBJECTIVES["language-modelling"]
    for objective in (fused_objective.plain(), fused_objective):
        model = build("eager")
        model.get_output_embeddings().weight.requires_grad_(False)
        loss = objective.loss(model, data, "cpu")
        loss.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        with torch.no_grad():
            results.append((loss.detach(), grads, objective.rows(model, data, "cpu")))
    (plain, plain_grads, plain_rows), (fused, grads, rows) = results
    assert torch.allclose(fused, plain, rtol=1e-6)
    assert torch.allclose(grads, plain_grads, rtol=1e-4, atol=1e-7)
    for got, want in zip(rows, plain_rows, strict=True):
        assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("block_bytes", [4 * 50 * 3, 2**25])
def test_recorded_head_equals_the_head_at_positions_with_targets(block_bytes: int, monkeypatch) -> None:
    monkeypatch.setattr(lm_head, "_BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False).requires_grad_(False)
    targets = torch.randint(0, 50, (11,))
    targets[[0, 4, 10]] = -100
    found = []
    for recording in (False, True):
        monkeypatch.setattr(lm_head, "_is_recorded", lambda _, here=recording: here)
        hidden = torch.randn(11, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
        loss = lm_head.head_loss(hidden, head, targets)
        (3 * loss).backward()
        found.append((loss.detach(), hidden.grad))
    (loss, grad), (fixed_loss, fixed_grad) = found
    assert torch.allclose(fixed_loss, loss, rtol=1e-6) and torch.allclose(
        fixed_grad, grad, rtol=1e-5, atol=1e-8
    )


def test_trainable_or_unknown_head_is_not_fused() -> None:
    model = llama("eager")
    assert lm_head.split_head(model) is None  # its weight requires a gradient
    model.requires_grad_(False)
    parts = lm_head.split_head(model)
    assert parts is not None and parts.head is model.lm_head and parts.body is model.model
    type(model).__name__, saved = "GemmaForCausalLM", type(model).__name__
    try:
        assert lm_head.split_head(model) is None
    finally:
        type(model).__name__ = saved


@pytest.mark.parametrize("part", ["", "lm_head"])
def test_head_with_a_hook_is_not_fused(part: str) -> None:
    model = llama("eager").requires_grad_(False)
    handle = model.get_submodule(part).register_forward_hook(lambda _, args, output: output)
    assert lm_head.split_head(model) is None
    handle.remove()
    assert lm_head.split_head(model) is not None
    model.lm_head.forward = lambda x: x
    assert lm_head.split_head(model) is None


def test_head_loss_ignores_padding() -> None:
    head = torch.nn.Linear(8, 20, bias=False).requires_grad_(False)
    hidden = torch.randn(6, 8, requires_grad=True)
    targets = torch.tensor([1, -100, 3, 19, -100, 0])
    loss = lm_head.head_loss(hidden, head, targets)
    expected = F.cross_entropy(head(hidden), targets)
    assert torch.allclose(loss, expected)
    (got,), (want,) = torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden)
    assert torch.allclose(got, want, atol=1e-7)


def head_gradient(
    dtype: torch.dtype, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient of 300 hidden states over 2,000 tokens, with hidden states, weight and targets."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 2000, bias=False).requires_grad_(False)
    head.weight.data = torch.randn(2000, 16, generator=generator).to(dtype)
    hidden = (torch.randn(300, 16, generator=generator) * 0.1).to(dtype).requires_grad_(True)
    targets = torch.randint(0, 2000, (300,), generator=generator)
    (lm_head.head_loss(hidden, head, targets) * scale).backward()
    return hidden.grad, hidden.detach(), head.weight, targets


def test_head_gradient_is_divided_after_the_product() -> None:
    """Bit-identical: probabilities are rounded, multiplied, then divided by the number of positions."""
    got, hidden, weight, targets = head_gradient(torch.bfloat16, 0.37)
    probabilities = torch.log_softmax((hidden @ weight.T).float(), -1).exp_()
    probabilities.scatter_add_(1, targets[:, None], probabilities.new_full((300, 1), -1.0))
    assert torch.equal(
        got,
        ((probabilities.to(torch.bfloat16) @ weight).float() * (torch.tensor(0.37) / 300)).to(torch.bfloat16),
    )


def test_head_gradient_does_not_underflow_in_fp16() -> None:
    exact, *_ = head_gradient(torch.float32, 2.0**10)
    got, *_ = head_gradient(torch.float16, 2.0**10)
    assert float((got.float() - exact).norm() / exact.norm()) < 0.005
