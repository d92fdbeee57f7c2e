"""The scale of an adapter follows its rank by the policy, in PEFT, in files and while AdaLoRA moves ranks."""

from __future__ import annotations

import math

import pytest
import torch
from bitrank_adapters import (
    SCALE_POLICIES,
    AdaLora,
    AdaLoraRanks,
    AdapterError,
    AdapterScale,
    ShrinkingRanks,
    adapted,
    attach_adalora,
    attach_lora,
    effective_scale,
    fuse,
    read_adapter,
)
from peft import PeftModel

STEPS = 40
HEADS = {"bert": ["classifier"]}
EXPECTED = {
    "alpha": lambda s, r: s * 8 / r,
    "alpha-capped": lambda s, r: min(s * 8 / r, 2 * s),
    "rslora": lambda s, r: s * math.sqrt(8 / r),
    "constant": lambda s, r: s,
}


def filled(model):
    source = torch.Generator().manual_seed(2)
    for _, layer in adapted(model):
        for factors in (layer.lora_A, layer.lora_B, getattr(layer, "lora_E", {})):
            for factor in factors.values():
                getattr(factor, "weight", factor).data.normal_(0, 0.3, generator=source)
    return model


def logits_of(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_every_policy_is_checked_here() -> None:
    assert set(EXPECTED) == set(SCALE_POLICIES)


@pytest.mark.parametrize("policy", SCALE_POLICIES)
def test_policies_agree_at_rank_8_and_follow_their_law(policy: str) -> None:
    scale = AdapterScale(3.0, policy)
    assert scale.of(8) == 3.0
    for rank in (1, 2, 4, 6, 16, 64):
        assert scale.of(rank) == pytest.approx(EXPECTED[policy](3.0, rank))
        assert scale.alpha(rank) / rank == pytest.approx(scale.of(rank))


def test_rank_zero_has_the_finite_scale_of_rank_one() -> None:
    assert AdapterScale().of(0) == AdapterScale().of(1) == 16.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2.0, "beta"), "one of the scale policies alpha, .* got 'beta'"),
        ((0.0,), "positive, finite scale of rank-8 adapters, got 0.0"),
        ((float("inf"),), "positive, finite"),
        ((float("nan"),), "positive, finite"),
    ],
)
def test_invalid_scales_raise_adapter_error(arguments, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        AdapterScale(*arguments)


@pytest.mark.parametrize("policy", SCALE_POLICIES)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_saved_adapter_has_the_same_scales_in_stock_peft(
    make, blocks, ids, tmp_path, name: str, policy: str
) -> None:
    ranks = {matrix: (1, 2, 8, 16)[n % 4] for n, matrix in enumerate(blocks[name])}
    scale = AdapterScale(1.5, policy)
    model = filled(attach_lora(make(name), ranks, scale=scale, heads=HEADS.get(name, [])))
    scales = {matrix: layer.scaling["default"] for matrix, layer in adapted(model)}
    assert scales == pytest.approx({m: EXPECTED[policy](1.5, rank) for m, rank in ranks.items()})
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make(name), tmp_path)
    assert stock.peft_config["default"].use_rslora is False
    assert {matrix: layer.scaling["default"] for matrix, layer in adapted(stock)} == scales
    assert torch.allclose(logits_of(stock, ids), logits_of(model, ids), atol=1e-5)


def adaptive(make, blocks, hook, policy="alpha", name="llama"):
    model = attach_adalora(
        make(name),
        blocks[name],
        AdaLora(6, 2, every=2),
        total_steps=STEPS,
        scale=AdapterScale(2.0, policy),
        heads=HEADS.get(name, []),
    )
    return filled(model), hook(model)


def train(model, hook, ids, first: int, last: int) -> None:
    for step in range(first, last + 1):
        logits = model(input_ids=ids.roll(step, dims=1)).logits
        ((logits.float() - 1).square().mean() + hook.penalty()).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter -= 0.02 * parameter.grad
        hook.after_step(step)
        model.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("hook", [AdaLoraRanks, ShrinkingRanks])
@pytest.mark.parametrize("policy", ["alpha", "rslora", "alpha-capped"])
def test_adalora_scale_follows_the_active_rank(make, blocks, ids, hook, policy: str, fused: bool) -> None:
    model, ranks = adaptive(make, blocks, hook, policy)
    if fused:
        fuse(model)
    for step in range(1, ranks.freeze_step + 2):
        train(model, ranks, ids, step, step)
        active = ranks.ranks()
        for name, layer in adapted(model):
            assert effective_scale(layer) == pytest.approx(
                EXPECTED[policy](2.0, max(active[name], 1)), rel=1e-5
            )
    assert len(set(active.values())) > 1
    with torch.no_grad():
        layer = next(layer for name, layer in adapted(model) if active[name])
        product = layer.lora_B["default"] @ (layer.lora_A["default"] * layer.lora_E["default"])
        inputs = torch.randn(3, layer.in_features)
        added = layer(inputs) - layer.base_layer(inputs)
        assert torch.allclose(added, effective_scale(layer) * inputs @ product.T, atol=1e-4)


def test_a_new_scale_changes_neither_output_nor_importance(make, blocks, ids) -> None:
    model, hook = adaptive(make, blocks, AdaLoraRanks)
    train(model, hook, ids, 1, 10)
    pattern = {f"{name}.lora_E.default": [n < 3 for n in range(6)] for name in blocks["llama"]}
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_E["default"][3:] = 0
    before, importance = logits_of(model, ids), importances(model, ids)
    hook._config.rank_pattern = pattern
    hook._follow_ranks()
    assert all(effective_scale(layer) == pytest.approx(16 / 3) for _, layer in adapted(model))
    assert torch.allclose(logits_of(model, ids), before, atol=1e-5)
    for name, value in importances(model, ids).items():
        assert torch.allclose(value, importance[name], atol=1e-5), name
    assert hook.rescaled() and hook.rescaled() is None


def importances(model, ids):
    """|w ∂L/∂w| of every low-rank parameter."""
    model.zero_grad()
    model(input_ids=ids).logits.square().mean().backward()
    return {n: (p * p.grad).abs().detach() for n, p in model.named_parameters() if "lora_" in n}


@pytest.mark.parametrize("hook", [AdaLoraRanks, ShrinkingRanks])
@pytest.mark.parametrize("at", [10, 24, 30])
def test_a_resumed_run_has_the_same_scales_and_parameters(make, blocks, ids, hook, at: int) -> None:
    straight, straight_hook = adaptive(make, blocks, hook)
    train(straight, straight_hook, ids, 1, STEPS)
    first, first_hook = adaptive(make, blocks, hook)
    train(first, first_hook, ids, 1, at)
    second, second_hook = adaptive(make, blocks, hook)
    second_hook.restore(*first_hook.state())
    assert second_hook.rescaled() is None
    second.load_state_dict(first.state_dict())
    train(second, second_hook, ids, at + 1, STEPS)
    for (name, a), (_, b) in zip(straight.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("hook", [AdaLoraRanks, ShrinkingRanks])
@pytest.mark.parametrize("steps", [20, STEPS])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_saved_adalora_computes_the_same_in_stock_peft_and_when_merged(
    make, blocks, ids, tmp_path, hook, steps: int, name: str
) -> None:
    model, ranks = adaptive(make, blocks, hook, name=name)
    train(model, ranks, ids, 1, steps)
    with ranks.as_stored():
        want = logits_of(model, ids)
        deltas = {n: layer.get_delta_weight("default").detach().clone() for n, layer in adapted(model)}
    ranks.save(tmp_path)
    stock = PeftModel.from_pretrained(make(name), tmp_path)
    assert torch.allclose(logits_of(stock, ids), want, atol=1e-4)
    for matrix, part in read_adapter(tmp_path).parts.items():
        delta = deltas[matrix].T if name == "gpt2" else deltas[matrix]
        assert torch.allclose(part.product(), delta, atol=1e-5)


def test_adalora_of_another_maker_raises_adapter_error(make, blocks) -> None:
    model, _ = adaptive(make, blocks, AdaLoraRanks)
    del model.adapter_scale
    with pytest.raises(AdapterError, match="make it with attach_adalora"):
        AdaLoraRanks(model)
