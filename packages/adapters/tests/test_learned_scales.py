"""ARD-LoRA: exact penalties, ranks in proportion to learned scales within the budget, exact resume."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import LearnedScaleRanks, LearnedScales, adapted, attach_learned_scales
from bitrank_adapters.learned_scales import apportion, scale_penalty
from peft import PeftModel

STEPS = 20


def scaled(make, blocks, name="llama"):
    schedule = LearnedScales(6, 2, every=2)
    model = attach_learned_scales(make(name), blocks[name], schedule, total_steps=STEPS, seed=1)
    return model, LearnedScaleRanks(model, schedule)


def optimizer_of(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def steps(model, hook, optimizer, ids, first: int, last: int) -> list[int]:
    """Train; return the sum of active ranks after each step."""
    sums = []
    for step in range(first, last + 1):
        logits = model(input_ids=ids.roll(step, dims=1)).logits
        (logits.float().square().mean() + hook.penalty()).backward()
        optimizer.step()
        hook.after_step(step)
        optimizer.zero_grad()
        sums.append(sum(hook.ranks().values()))
    return sums


def test_penalty_is_the_sum_of_scales_and_of_steps_between_layers() -> None:
    values = {"a.0.q": 1.0, "a.2.q": 0.5, "a.1.q": -0.25, "a.0.up": 0.75, "a.1.up": 0.0, "head": 3.0}
    scales = {name: torch.tensor(value) for name, value in values.items()}
    # Σ |α| = 5.5; q in the order of layers: |−0.25 − 1| + |0.5 + 0.25| = 2, up: 0.75
    assert float(scale_penalty(scales, 0.1, 0.0)) == pytest.approx(0.55)
    assert float(scale_penalty(scales, 0.0, 1.0)) == pytest.approx(2.75)
    assert float(scale_penalty(scales, 0.1, 10.0)) == pytest.approx(28.05)


def test_a_new_adapter_changes_nothing_and_its_penalty_counts_matrices(make, blocks, ids) -> None:
    model, hook = scaled(make, blocks)
    assert torch.equal(model(input_ids=ids).logits, make("llama")(input_ids=ids).logits)
    assert all(float(alpha.detach()) == pytest.approx(1.0) for alpha in hook.scales().values())
    assert float(hook.penalty().detach()) == pytest.approx(1e-4 * len(blocks["llama"]), rel=1e-4)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_active_ranks_end_at_the_budget_and_each_matrix_keeps_one_scale(make, blocks, ids, name: str) -> None:
    model, hook = scaled(make, blocks, name)
    sums = steps(model, hook, optimizer_of(model), ids, 1, STEPS)
    assert sums == sorted(sums, reverse=True) and sums[-1] <= hook.budget == 2 * len(blocks[name])
    sizes = {n: sum(layer.get_base_layer().weight.shape) for n, layer in adapted(model)}
    numbers, most = sum(rank * sizes[n] for n, rank in hook.ranks().items()), 2 * sum(sizes.values())
    assert most - 2 * max(sizes.values()) < numbers <= most, "the bytes of rank 2 on every matrix"
    changed = 0
    for matrix, layer in adapted(model):
        values_R = layer.lora_E["default"][:, 0]
        active_R = values_R[values_R != 0]
        assert len(active_R) == hook.ranks()[matrix]
        assert not len(active_R) or torch.allclose(active_R, active_R[0].expand_as(active_R), rtol=1e-5)
        changed += abs(float(hook.scales()[matrix].detach()) - 1) > 0.05
    assert changed


def test_gradient_of_a_scale_is_the_sum_of_those_of_its_active_components(make, blocks, ids) -> None:
    def gradients(model) -> dict[str, torch.Tensor]:
        for _, layer in adapted(model):
            torch.nn.init.normal_(layer.lora_B["default"], 0, 0.1, torch.Generator().manual_seed(0))
        model(input_ids=ids).logits.square().mean().backward()
        return {name: layer.lora_E["default"].grad[:, 0] for name, layer in adapted(model)}

    untied = attach_learned_scales(make("llama"), blocks["llama"], LearnedScales(6, 2), total_steps=STEPS)
    tied = attach_learned_scales(make("llama"), blocks["llama"], LearnedScales(6, 2), total_steps=STEPS)
    LearnedScaleRanks(tied, LearnedScales(6, 2))
    apart, shared = gradients(untied), gradients(tied)
    for name, each_R in apart.items():
        assert len(set(each_R.tolist())) == 6
        assert torch.allclose(shared[name], each_R.sum().expand(6), rtol=1e-4)


def test_ranks_are_shared_out_in_proportion_to_scales() -> None:
    most = {"a": 6, "b": 6, "c": 6}
    assert apportion(9, {"a": 1.0, "b": 1.0, "c": 1.0}, most) == {"a": 3, "b": 3, "c": 3}
    assert apportion(8, {"a": 4.0, "b": 2.0, "c": 2.0}, most) == {"a": 4, "b": 2, "c": 2}
    assert apportion(9, {"a": 8.0, "b": 1.0, "c": 0.0}, most) == {"a": 6, "b": 3, "c": 0}
    assert apportion(4, {"a": 1.0, "b": 1.0, "c": 1.0}, most) == {"a": 2, "b": 1, "c": 1}
    assert apportion(6, {"a": 100.0, "b": 100.0, "c": 1.0}, most) == {"a": 3, "b": 3, "c": 0}
    assert apportion(9, {"a": 1.0, "b": 0.0, "c": 0.0}, most) == {"a": 6, "b": 0, "c": 0}


def test_a_matrix_of_a_small_scale_ends_with_rank_zero(make, blocks, ids) -> None:
    model, hook = scaled(make, blocks)
    name, layer = adapted(model)[0]
    optimizer = optimizer_of(model)
    optimizer.param_groups[0]["lr"] = 1e-4
    for step in range(1, STEPS + 1):
        steps(model, hook, optimizer, ids, step, step)
        layer.lora_E["default"].data.clamp_(-1e-4, 1e-4)
    assert hook.ranks()[name] == 0 and float(hook.scales()[name].detach()) == 0.0
    assert 0 <= hook.budget - sum(hook.ranks().values()) <= 1


def test_large_scales_of_large_matrices_do_not_exceed_the_bytes_of_the_mean_rank(make, blocks) -> None:
    model, hook = scaled(make, blocks, "bert")
    sizes = {n: sum(layer.get_base_layer().weight.shape) for n, layer in adapted(model)}
    with torch.no_grad():
        for name, layer in adapted(model):
            layer.lora_E["default"].mul_(float(sizes[name]) ** 4)
    hook._prune(1)
    numbers = sum(rank * sizes[n] for n, rank in hook.ranks().items())
    most = 2 * sum(sizes.values())
    assert most - 2 * max(sizes.values()) < numbers <= most
    assert sum(hook.ranks().values()) < hook.budget, "fewer ranks, since large matrices have more of them"


@pytest.mark.parametrize("at", [7, 14])
def test_restored_state_continues_bit_identically(make, blocks, ids, at: int) -> None:
    straight, straight_hook = scaled(make, blocks)
    steps(straight, straight_hook, optimizer_of(straight), ids, 1, STEPS)
    first, first_hook = scaled(make, blocks)
    first_optimizer = optimizer_of(first)
    steps(first, first_hook, first_optimizer, ids, 1, at)
    second, second_hook = scaled(make, blocks)
    second_hook.restore(*first_hook.state())
    second.load_state_dict(first.state_dict())
    second_optimizer = optimizer_of(second)
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    steps(second, second_hook, second_optimizer, ids, at + 1, STEPS)
    assert second_hook.ranks() == straight_hook.ranks()
    for (name, a), (_, b) in zip(straight.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_file_has_the_ranks_and_the_function(make, blocks, ids, tmp_path) -> None:
    model, hook = scaled(make, blocks)
    steps(model, hook, optimizer_of(model), ids, 1, STEPS)
    hook.save(tmp_path)
    with hook.as_stored():
        expected = model(input_ids=ids).logits
    stock = PeftModel.from_pretrained(make("llama"), str(tmp_path))
    assert torch.allclose(stock(input_ids=ids).logits, expected, atol=1e-5)
