"""Reduction at the end of training: best approximations by global singular values, exact files."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import AdapterError, AdapterScale, ReducedRanks, adapted, attach_lora, read_adapter
from bitrank_adapters.reduce import kept_ranks
from bitrank_adapters.scales import effective_scale
from peft import PeftModel

HIGH, TARGET, STEPS = 8, 2, 5


def high_rank(make, blocks, name="llama", policy="alpha"):
    model = attach_lora(
        make(name), dict.fromkeys(blocks[name], HIGH), scale=AdapterScale(2.0, policy), seed=1
    )
    source = torch.Generator().manual_seed(2)
    for number, (_, layer) in enumerate(adapted(model)):  # later matrices learn more
        for factors in (layer.lora_A, layer.lora_B):
            factors["default"].weight.data.normal_(0, 0.1 + 0.05 * number, generator=source)
    return model, ReducedRanks(model, TARGET, STEPS)


def products(model):
    return {
        name: effective_scale(layer)
        * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach().clone()
        for name, layer in adapted(model)
    }


def reduced(make, blocks, **options):
    model, hook = high_rank(make, blocks, **options)
    before = products(model)
    hook.after_step(STEPS - 1)
    assert set(hook.ranks().values()) == {HIGH} and not hook.settled(STEPS - 1)
    hook.after_step(STEPS)
    assert hook.settled(STEPS)
    return model, hook, before


def test_kept_directions_are_the_largest_singular_values_of_the_model(make, blocks):
    model, hook, before = reduced(make, blocks)
    ranks = hook.ranks()
    sizes = {name: sum(product.shape) for name, product in before.items()}
    used = sum(ranks[name] * size for name, size in sizes.items())
    assert len(set(ranks.values())) > 1 and used <= TARGET * sum(sizes.values())
    assert used > TARGET * sum(sizes.values()) - max(sizes.values()), "no further direction fits"
    for name, after in products(model).items():
        u_OR, values_R, v_RI = torch.linalg.svd(before[name], full_matrices=False)
        rank = ranks[name]
        torch.testing.assert_close(
            after, (u_OR[:, :rank] * values_R[:rank]) @ v_RI[:rank], rtol=1e-3, atol=1e-4
        )


def test_order_is_global_and_a_direction_that_does_not_fit_ends_its_matrix():
    values = {"a": torch.tensor([9.0, 3.0, 1.0]), "b": torch.tensor([5.0, 4.0, 0.0])}
    assert kept_ranks(values, {"a": 10, "b": 10}, 30) == {"a": 1, "b": 2}
    assert kept_ranks(values, {"a": 10, "b": 25}, 30) == {"a": 3, "b": 0}
    assert kept_ranks(values, {"a": 10, "b": 10}, 1000) == {"a": 3, "b": 2}, (
        "a direction of 0 is worth nothing"
    )


@pytest.mark.parametrize("policy", ["alpha", "constant"])
def test_file_is_plain_lora_that_computes_what_the_model_reported(make, blocks, ids, tmp_path, policy):
    model, hook, _ = reduced(make, blocks, policy=policy)
    with torch.no_grad(), hook.as_stored():
        expected = model.eval()(input_ids=ids).logits
    hook.save(tmp_path)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(make("llama"), str(tmp_path)).eval()
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    saved = {name: part.down_RI.shape[0] for name, part in read_adapter(tmp_path).parts.items()}
    assert saved == {name: rank for name, rank in hook.ranks().items() if rank}
    numbers = sum(p.up_OR.numel() + p.down_RI.numel() for p in read_adapter(tmp_path).parts.values())
    assert hook.stored_bytes() == 2 * numbers


def test_state_of_a_finished_reduction_is_restored(make, blocks):
    _, hook, _ = reduced(make, blocks)
    other = ReducedRanks(high_rank(make, blocks)[0], TARGET, STEPS)
    other.restore(*hook.state())
    assert other.ranks() == hook.ranks() and other.stored_bytes() == hook.stored_bytes()
    fresh, first = high_rank(make, blocks)
    second = ReducedRanks(fresh, TARGET, STEPS)
    second.restore(*first.state())
    assert second.ranks() == first.ranks()


@pytest.mark.parametrize("target", [0, HIGH])
def test_rank_that_is_no_reduction_is_an_error(make, blocks, target):
    model, _ = high_rank(make, blocks)
    with pytest.raises(
        AdapterError, match=f"expected a rank from 1 to {HIGH - 1} to reduce to, got {target}"
    ):
        ReducedRanks(model, target, STEPS)
