"""Dynamic ranks (Mao et al. 2024) are pruned on their schedule, end at the budget, and resume exactly."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import Dynamic, DynamicRanks, adapted, attach_dynamic
from bitrank_adapters.dynamic_rank import component_shares

STEPS = 40


def dynamic(make, blocks, name="llama"):
    model = attach_dynamic(make(name), blocks[name], Dynamic(6, 2, every=2), total_steps=STEPS, seed=1)
    return model, DynamicRanks(model)


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


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_active_ranks_end_at_the_budget_in_ranks_and_in_bytes(make, blocks, ids, name: str) -> None:
    """One more component, the most important of those that were pruned, would exceed one of both."""
    model, hook = dynamic(make, blocks, name)
    sums = steps(model, hook, optimizer_of(model), ids, 1, STEPS)
    sizes = {n: sum(layer.get_base_layer().weight.shape) for n, layer in adapted(model)}
    numbers, most = sum(rank * sizes[n] for n, rank in hook.ranks().items()), 2 * sum(sizes.values())
    assert sums[-1] <= hook.budget == 2 * len(blocks[name]) and numbers <= most
    assert sums[-1] == hook.budget or numbers + max(sizes.values()) > most
    nonzero = {name: int((layer.lora_E["default"] != 0).sum()) for name, layer in adapted(model)}
    assert nonzero == hook.ranks()


def test_important_components_of_large_matrices_do_not_exceed_the_bytes_of_the_mean_rank(
    make, blocks
) -> None:
    model, hook = dynamic(make, blocks, "bert")
    sizes = {n: sum(layer.get_base_layer().weight.shape) for n, layer in adapted(model)}
    for name, importance_R in hook._importance.items():
        importance_R.fill_(sizes[name])
    hook._prune(1)
    numbers = sum(rank * sizes[n] for n, rank in hook.ranks().items())
    most = 2 * sum(sizes.values())
    assert most - max(sizes.values()) < numbers <= most
    assert sum(hook.ranks().values()) < hook.budget, "fewer components, since the large ones are kept"


def test_ranks_follow_the_cubic_schedule(make, blocks, ids) -> None:
    """The pruned share is (t/T)³ of the whole, at every second step from step 6 (15 %) to step 20 (50 %).

    The last pruning counts bytes too (test above).
    """
    model, hook = dynamic(make, blocks)
    sums = steps(model, hook, optimizer_of(model), ids, 1, 24)
    total, pruned = 6 * len(blocks["llama"]), 4 * len(blocks["llama"])
    expected = {step: total - int(pruned * ((step - 6) / 14) ** 3) for step in range(6, 20, 2)}
    assert {step: sums[step - 1] for step in expected} == expected
    assert sums[0] == total and sums[19] == sums[20] == sums[23]


def test_shares_are_the_norms_of_components_over_the_norm_of_the_update(make, blocks) -> None:
    model, _ = dynamic(make, blocks)
    for _, layer in adapted(model):
        down_RI, up_OR = layer.lora_A["default"], layer.lora_B["default"]
        with torch.no_grad():
            layer.lora_E["default"].copy_(torch.randn(6, 1))
        parts_ROI = torch.einsum("r,or,ri->roi", layer.lora_E["default"][:, 0], up_OR, down_RI)
        expected_R = parts_ROI.flatten(1).norm(dim=1) / parts_ROI.sum(0).norm()
        assert torch.allclose(component_shares(layer), expected_R, rtol=1e-4)


def test_penalty_is_the_mean_variance_until_the_freeze(make, blocks, ids) -> None:
    model, hook = dynamic(make, blocks)
    variances = []
    for _, layer in adapted(model):
        variances += [layer.lora_A["default"].var(dim=1), layer.lora_B["default"].var(dim=0)]
    assert torch.allclose(hook.penalty(), 0.1 * torch.cat(variances).mean())
    steps(model, hook, optimizer_of(model), ids, 1, hook.freeze_step)
    assert float(hook.penalty().detach()) == 0.0


def test_a_new_adapter_changes_nothing(make, blocks, ids) -> None:
    model, _ = dynamic(make, blocks)
    assert torch.allclose(model(input_ids=ids).logits, make("llama")(input_ids=ids).logits, atol=1e-6)


@pytest.mark.parametrize("at", [13, 30])
def test_restored_state_continues_bit_identically(make, blocks, ids, at: int) -> None:
    straight, straight_hook = dynamic(make, blocks)
    steps(straight, straight_hook, optimizer_of(straight), ids, 1, STEPS)
    first, first_hook = dynamic(make, blocks)
    first_optimizer = optimizer_of(first)
    steps(first, first_hook, first_optimizer, ids, 1, at)
    second, second_hook = dynamic(make, blocks)
    second.load_state_dict(first.state_dict())
    second_optimizer = optimizer_of(second)
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    second_hook.restore(*first_hook.state())
    steps(second, second_hook, second_optimizer, ids, at + 1, STEPS)
    assert second_hook.ranks() == straight_hook.ranks()
    for (name, a), (_, b) in zip(straight.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
