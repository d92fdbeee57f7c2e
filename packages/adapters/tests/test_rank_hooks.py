"""AdaLoRA ends exactly at its budget, raises if it does not, and resumes from its state exactly."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    AdaLora,
    AdaLoraRanks,
    BudgetMissed,
    FixedRanks,
    adapted,
    attach_adalora,
    attach_lora,
    uniform_ranks,
)

STEPS = 40


def adalora(make, blocks, name="bert"):
    model = attach_adalora(make(name), blocks[name], AdaLora(6, 2, every=2), total_steps=STEPS, seed=1)
    return model, AdaLoraRanks(model)


def steps(model, hook, optimizer, ids, first: int, last: int) -> None:
    for step in range(first, last + 1):
        batch = ids.roll(step, dims=1)
        logits = model(input_ids=batch).logits
        (logits.float().square().mean() + hook.penalty()).backward()
        optimizer.step()
        hook.after_step(step)
        optimizer.zero_grad()


def optimizer_of(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_active_ranks_end_exactly_at_the_budget(make, blocks, ids, name: str) -> None:
    model, hook = adalora(make, blocks, name)
    assert sum(hook.ranks().values()) == 6 * len(blocks[name])
    steps(model, hook, optimizer_of(model), ids, 1, STEPS)
    assert sum(hook.ranks().values()) == hook.budget == 2 * len(blocks[name])
    assert set(hook.ranks()) == set(blocks[name])
    held = {name: int((layer.lora_E["default"] != 0).sum()) for name, layer in adapted(model)}
    assert held == hook.ranks()


def test_ranks_are_settled_from_the_freeze_on(make, blocks) -> None:
    _, hook = adalora(make, blocks)
    assert [hook.settled(step) for step in (1, hook.freeze_step - 1, hook.freeze_step, STEPS)] == [
        False,
        False,
        True,
        True,
    ]


def test_missed_budget_raises(make, blocks, ids) -> None:
    """Without gradients all scores tie, and PEFT masks every triplet without a message."""
    model, hook = adalora(make, blocks)
    optimizer = optimizer_of(model)
    with pytest.raises(BudgetMissed, match=r"froze with 0 active ranks, the budget is 16.*Train longer"):
        for step in range(1, STEPS + 1):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            hook.after_step(step)


@pytest.mark.parametrize("at", [5, 17, 30])
def test_restored_state_continues_bit_identically(make, blocks, ids, at: int) -> None:
    straight, straight_hook = adalora(make, blocks)
    steps(straight, straight_hook, optimizer_of(straight), ids, 1, STEPS)

    first, first_hook = adalora(make, blocks)
    first_optimizer = optimizer_of(first)
    steps(first, first_hook, first_optimizer, ids, 1, at)
    second, second_hook = adalora(make, blocks)
    second.load_state_dict(first.state_dict())
    second_optimizer = optimizer_of(second)
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    second_hook.restore(*first_hook.state())
    steps(second, second_hook, second_optimizer, ids, at + 1, STEPS)

    assert second_hook.ranks() == straight_hook.ranks()
    for (name, a), (_, b) in zip(straight.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_state_contains_nonzero_averages(make, blocks, ids) -> None:
    """Condition of the test above: the saved averages are not zero."""
    straight, straight_hook = adalora(make, blocks)
    steps(straight, straight_hook, optimizer_of(straight), ids, 1, 20)
    tensors, _ = straight_hook.state()
    assert tensors and all(
        value.abs().sum() > 0 for key, value in tensors.items() if key.startswith("avg:") and "lora_A" in key
    )


def test_penalty_is_the_mean_distance_from_orthogonality(make, blocks) -> None:
    model, hook = adalora(make, blocks)
    distances = []
    for _, layer in adapted(model):
        p, q = layer.lora_B["default"], layer.lora_A["default"]
        distances += [torch.linalg.norm(p.T @ p - torch.eye(6)), torch.linalg.norm(q @ q.T - torch.eye(6))]
    assert torch.allclose(hook.penalty(), 0.1 * torch.stack(distances).mean())


def test_fixed_ranks_have_no_penalty_and_no_state(make, blocks) -> None:
    model = attach_lora(make("bert"), uniform_ranks(blocks["bert"], 3))
    hook = FixedRanks(model)
    assert hook.penalty() is None and hook.settled(1) and hook.state() == ({}, "{}")
    assert set(hook.ranks().values()) == {3}
