"""AdaLoRA's batched importance and orthogonality term equal the per-matrix computation."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import AdaLora, AdapterScale, attach_adalora
from bitrank_adapters.adaptive_ranks import AdaLoraRanks
from bitrank_adapters.importance import OffOrthogonal
from peft.tuners.adalora.layer import RankAllocator
from torch import nn


def factors() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 32), (64, 4), (4, 32), (4, 64), (64, 4)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_orthogonality_term_and_gradient_equal_autograd() -> None:
    plain, ours = factors(), factors()
    terms = []
    for factor in plain:
        wide = factor if factor.shape[0] <= factor.shape[1] else factor.T
        terms.append(torch.linalg.matrix_norm(wide @ wide.T - torch.eye(4)))
    expected = torch.stack(terms).mean() * 0.3
    got = OffOrthogonal.apply(*ours) * 0.3
    expected.backward()
    got.backward()
    assert float(got) == pytest.approx(float(expected), rel=1e-6)
    for mine, theirs in zip(ours, plain, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_orthogonal_factors_have_zero_cost_and_gradient() -> None:
    factor = nn.Parameter(torch.eye(3, 8))
    cost = OffOrthogonal.apply(factor)
    cost.backward()
    assert float(cost) == 0
    assert torch.count_nonzero(factor.grad) == 0


def test_importance_and_ranks_equal_peft(make, blocks, ids) -> None:
    """Two AdaLoRA runs over a whole schedule, one with PEFT's update: same averages, masks and ranks."""
    runs = []
    for peft_update in (False, True):
        torch.manual_seed(0)
        model = attach_adalora(
            make("llama"), blocks["llama"], AdaLora(6, 2), total_steps=20, scale=AdapterScale(1.7, "constant")
        )
        hook = AdaLoraRanks(model)
        allocator = model.base_model.rankallocator
        if peft_update:
            allocator.update_ipt = RankAllocator.update_ipt.__get__(allocator)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        averages = {}
        for step in range(1, 21):
            logits = model(input_ids=ids).logits.float()
            (logits.square().mean() + hook.penalty()).backward()
            optimizer.step()
            hook.after_step(step)
            optimizer.zero_grad()
            if step == hook.freeze_step - 1:
                averages = {
                    name: value.clone()
                    for name, value in (*allocator.exp_avg_ipt.items(), *allocator.exp_avg_unc.items())
                }
        runs.append(
            (averages, hook.ranks(), {n: p.detach() for n, p in model.named_parameters() if "lora_E" in n})
        )
    (ours, ranks, values), (theirs, their_ranks, their_values) = runs
    assert ranks == their_ranks and sum(ranks.values()) == 2 * len(blocks["llama"])
    assert ours.keys() == theirs.keys() and ours
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-12) for name in ours)
    assert all(torch.equal(values[name] == 0, their_values[name] == 0) for name in values)
