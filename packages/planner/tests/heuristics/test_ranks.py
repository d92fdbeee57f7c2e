from __future__ import annotations

import math

import pytest
from bitrank_planner.errors import PlanError
from bitrank_planner.heuristics import RANK_HEURISTICS
from bitrank_planner.heuristics.ranks import (
    activation,
    attention_first,
    ffn_first,
    gradient_probe,
    linear_decay,
    linear_growth,
    parameter_norm,
    two_stage,
    uniform,
)
from bitrank_planner.problem import Item, Option
from hypothesis import given
from hypothesis import strategies as st

ROLES = ("attention", "ffn", "other")


def items(shapes, roles=ROLES) -> list[Item]:
    return [
        Item(f"m{i}", (Option("any", 0, 1, 0.0),), roles[i % len(roles)], i // 2, shape)
        for i, shape in enumerate(shapes)
    ]


SHAPES = st.lists(st.tuples(st.integers(16, 96), st.integers(16, 96)), min_size=3, max_size=12)


def apply_rule(name: str, matrices, mean, values):
    """Ranks by the rule called ``name``; ``values`` are the measurements of the matrices."""
    named = {m.name: value for m, value in zip(matrices, values, strict=True)}
    if name == "activation":
        named = {n: [value / (k + 1) for k in range(200)] for n, value in named.items()}
    rule = RANK_HEURISTICS[name]
    return (
        rule(matrices, mean, named)
        if name in ("gradient_probe", "activation", "parameter_norm", "two_stage")
        else rule(matrices, mean)
    )


@pytest.mark.parametrize("name", RANK_HEURISTICS)
@given(data=st.data())
def test_rule_spends_the_uniform_total_to_one_step_within_the_bounds(name, data):
    matrices = items(data.draw(SHAPES))
    mean = data.draw(st.floats(1, 5))
    values = data.draw(st.lists(st.floats(0.1, 10), min_size=len(matrices), max_size=len(matrices)))
    ranks = apply_rule(name, matrices, mean, values)
    total = mean * sum(sum(m.shape) for m in matrices)
    taken = sum(ranks[m.name] * sum(m.shape) for m in matrices)
    assert total - max(sum(m.shape) for m in matrices) - 1 < taken <= total + 1e-6
    least = 0 if name in ("activation", "two_stage") else 1
    assert all(least <= ranks[m.name] <= min(m.shape) for m in matrices)
    assert list(ranks) == [m.name for m in matrices]


@given(st.integers(1, 16), SHAPES)
def test_uniform_gives_the_mean_rank_to_every_matrix(mean, shapes):
    assert set(uniform(items(shapes), mean).values()) == {mean}


def test_uniform_gives_the_remainder_to_earlier_matrices(blocks):
    attention = [m for m in blocks if m.role == "attention"]
    assert list(uniform(attention, 4.5).values()) == [5, 5, 4, 4]


def test_linear_decay_equals_a_worked_example(blocks):
    attention = [m for m in blocks if m.role == "attention"]
    assert list(linear_decay(attention, 6).values()) == [9, 7, 5, 3]
    assert list(linear_growth(attention, 6).values()) == [3, 5, 7, 9]


def test_linear_decay_goes_by_the_depth_of_each_stack(stacks):
    assert list(linear_decay(stacks, 6).values()) == [9, 7, 5, 3, 9, 3]


@given(st.floats(1, 12), st.integers(2, 20))
def test_linear_decay_never_increases_with_depth(mean, layers):
    ranks = list(
        linear_decay(
            [Item(f"m{k}", (Option("any", 0, 1, 0.0),), "ffn", k, (32, 32)) for k in range(layers)], mean
        ).values()
    )
    assert ranks == sorted(ranks, reverse=True)


def test_favoured_role_gets_three_times_the_rank(blocks):
    one = [m for m in blocks if m.layer == 0]  # steps of 128 and 192 numbers: 3r · 128 + r · 192 = 576 r
    assert attention_first(one, 9) == {"0.q": 15, "0.up": 5}  # 2880 = 576 · 5
    assert ffn_first(one, 11) == {"0.q": 5, "0.up": 15}  # 3520 = 704 · 5


def test_gradient_probe_equals_a_worked_example():
    a, b = items([(50, 50), (200, 200)])  # √100 = 10, √400 = 20
    ranks = gradient_probe([a, b], 8, {"m0": 0.2, "m1": 0.6})
    # r ∝ 0.2/10 and 0.6/20, so 2 : 3; 8 · 500 = 4000 = c (2 · 100 + 3 · 400), c = 20/7: 5.71 and 8.57.
    # Integer parts take 500 + 3200, 300 remain: the fraction 0.71 is larger and takes 100, 0.57 needs 400.
    assert ranks == {"m0": 6, "m1": 8}


def test_gradient_probe_keeps_the_rank_bounds():
    a, b = items([(10, 40), (40, 10)])
    assert gradient_probe([a, b], 5, {"m0": 1.0, "m1": 0.0}) == {"m0": 9, "m1": 1}
    with pytest.raises(PlanError, match="trainable numbers"):
        gradient_probe([a, b], 8, {"m0": 1.0, "m1": 0.0})


def test_activation_equals_a_worked_example():
    a, b = items([(20, 20), (20, 20)])
    assert activation([a, b], 2, {"m0": [0.5, 0.3, 0.1, 0.05], "m1": [0.4, 0.04, 0.03, 0.02]}) == {
        "m0": 3,
        "m1": 1,
    }
    assert activation([a, b], 2, {"m0": [0.9] * 8, "m1": [0.1] * 8}) == {"m0": 4, "m1": 0}
    with pytest.raises(PlanError, match="ran out of ratios"):
        activation([a, b], 4, {"m0": [0.9], "m1": [0.1]})


def test_parameter_norm_equals_a_worked_example():
    assert parameter_norm(items([(20, 20), (20, 20)]), 6, {"m0": 1.0, "m1": 2.0}) == {"m0": 4, "m1": 8}


def test_two_stage_keeps_the_more_important_half():
    four = items([(20, 20)] * 4)
    assert two_stage(four, 3, {"m0": 1.0, "m1": 5.0, "m2": 0.0, "m3": 2.0}) == {
        "m0": 0,
        "m1": 6,
        "m2": 0,
        "m3": 6,
    }
    assert two_stage(four[:3], 2, dict.fromkeys(["m0", "m1", "m2"], 1.0)) == {"m0": 3, "m1": 3, "m2": 0}


@pytest.mark.parametrize("mean", [0, 0.5, math.nan, math.inf, 1000])
def test_mean_rank_outside_the_valid_range_raises(mean, blocks):
    with pytest.raises(PlanError, match="mean rank"):
        uniform(blocks, mean)


def test_missing_inputs_of_a_rule_raise(blocks, decoder):
    attention = [m for m in blocks if m.role == "attention"]
    with pytest.raises(PlanError, match="no matrix has the role ffn; the roles here: attention"):
        ffn_first(attention, 4)
    with pytest.raises(PlanError, match="two layers or more"):
        linear_decay(decoder[:1], 4)
    with pytest.raises(PlanError, match=r"no importance .* for 7 of 8 matrices, 0.up first"):
        gradient_probe(blocks, 4, {"0.q": 1.0})
    with pytest.raises(PlanError, match="not all zero"):
        parameter_norm(blocks, 4, dict.fromkeys((m.name for m in blocks), 0.0))
    with pytest.raises(PlanError, match="no explained-variance ratios"):
        activation(blocks, 4, {})
    with pytest.raises(PlanError, match="not a finite number"):
        activation(blocks, 4, {m.name: [0.5, math.nan] for m in blocks})
    with pytest.raises(PlanError, match="infinite or missing"):
        two_stage(blocks, 4, dict.fromkeys((m.name for m in blocks), math.nan))
    with pytest.raises(PlanError, match="at least one matrix"):
        uniform([], 4)
