"""Trainings of a few steps prune ranks several times, as long ones do."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    AdaLora,
    AdaLoraRanks,
    Dynamic,
    DynamicRanks,
    LearnedScaleRanks,
    LearnedScales,
    attach_adalora,
    attach_dynamic,
    attach_learned_scales,
)


def adalora(model, names, steps: int):
    model = attach_adalora(model, names, AdaLora(12, 4), total_steps=steps)
    return model, AdaLoraRanks(model)


def dynamic(model, names, steps: int):
    model = attach_dynamic(model, names, Dynamic(12, 8), total_steps=steps)
    return model, DynamicRanks(model)


def learned_scales(model, names, steps: int):
    model = attach_learned_scales(model, names, LearnedScales(12, 8), total_steps=steps)
    return model, LearnedScaleRanks(model, LearnedScales(12, 8))


def steps_that_prune(attach, make, names, ids, steps: int) -> list[int]:
    model, hook = attach(make("llama"), names, steps)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before, found = sum(hook.ranks().values()), []
    for step in range(1, steps + 1):
        logits = model(input_ids=ids.roll(step, dims=1)).logits
        (logits.float().square().mean() + hook.penalty()).backward()
        optimizer.step()
        hook.after_step(step)
        optimizer.zero_grad()
        active = sum(hook.ranks().values())
        if active != before:
            found.append(step)
        before = active
    return found


@pytest.mark.parametrize(
    ("attach", "expected"),
    [(adalora, [2, 4, 6]), (dynamic, [3, 4, 5]), (learned_scales, [3, 4, 5])],
)
def test_ten_steps_prune_three_times(attach, expected, make, blocks, ids) -> None:
    assert steps_that_prune(attach, make, blocks["llama"], ids, 10) == expected


@pytest.mark.parametrize(
    ("attach", "expected"),
    [(adalora, [5, 10, 15]), (dynamic, [9, 14, 15]), (learned_scales, [9, 14, 15])],
)
def test_thirty_steps_prune_every_five(attach, expected, make, blocks, ids) -> None:
    """The interval that is given holds where two of it fit between warm-up and freeze."""
    assert steps_that_prune(attach, make, blocks["llama"], ids, 30) == expected
