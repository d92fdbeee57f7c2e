"""Ranks from data need at most the numbers of the plan whose bytes they share."""

from __future__ import annotations

import math
import random

import pytest
import torch
from bitrank_adapters import AdapterError, ranks_by_importance, ranks_by_variance

SHAPES = {"q": (64, 64), "k": (16, 64), "up": (160, 64), "down": (64, 160)}


def numbers(ranks: dict[str, int]) -> int:
    return sum(rank * sum(SHAPES[name]) for name, rank in ranks.items())


def random_shares(source: random.Random) -> dict[str, torch.Tensor]:
    spread = {name: torch.logspace(0, -source.uniform(0.5, 6), 64) for name in SHAPES}
    return {name: values / values.sum() for name, values in spread.items()}


@pytest.mark.parametrize("seed", range(20))
def test_ranks_fit_the_numbers_of_the_plan_and_nearly_use_them(seed: int) -> None:
    source = random.Random(seed)
    plan = {name: source.randint(1, 10) for name in SHAPES}
    most = numbers(plan)
    by_variance = ranks_by_variance(random_shares(source), plan, SHAPES)
    importance = {name: source.lognormvariate(0, 2) for name in SHAPES}
    by_importance = ranks_by_importance(importance, plan, SHAPES)
    assert numbers(by_variance) <= most and numbers(by_importance) <= most
    full = all(by_variance[n] == min(2 * plan[n], *SHAPES[n]) for n in SHAPES)
    assert full or numbers(by_variance) > most - max(sum(shape) for shape in SHAPES.values())
    for name, rank in plan.items():
        assert 0 <= by_variance[name] <= 2 * rank
        assert math.ceil(rank / 2) <= by_importance[name] <= 4 * rank


def test_components_of_the_largest_shares_take_the_ranks() -> None:
    shares = {
        "q": torch.tensor([0.5, 0.4, 0.05, 0.05]),
        "k": torch.tensor([0.3, 0.3, 0.2, 0.2]),
        "up": torch.tensor([0.9, 0.06, 0.02, 0.02]),
    }
    shapes = dict.fromkeys(shares, (8, 8))
    ranks = ranks_by_variance(shares, dict.fromkeys(shares, 2), shapes)
    assert ranks == {"q": 2, "k": 3, "up": 1}  # 0.9, 0.5, 0.4, 0.3, 0.3, 0.2


def test_important_matrices_get_gora_s_formula_where_it_fits() -> None:
    """b = 3 · 8 · √16 = 96, and r = ⌊96 · share / 4⌋, from 4 to 32."""
    shapes = dict.fromkeys("abc", (8, 8))
    importance = {"a": 1.0, "b": 2.0, "c": 1.0}
    ranks = ranks_by_importance(importance, {"a": 8, "b": 8, "c": 8}, {**shapes, "b": (8, 8)})
    assert ranks == {"a": 6, "b": 8, "c": 6}  # b: 12, at most the smaller side, 8


def test_a_matrix_without_a_rank_gets_none() -> None:
    plan = {"q": 8, "k": 0}
    shares = {name: torch.full((64,), 1 / 64) for name in plan}
    assert set(ranks_by_variance(shares, plan, SHAPES)) == {"q"}
    assert set(ranks_by_importance({"q": 1.0, "k": 9.0}, plan, SHAPES)) == {"q"}


def test_data_that_decide_nothing_raise_adapter_error() -> None:
    with pytest.raises(AdapterError, match=r"add up to 0\.0"):
        ranks_by_importance({"q": 0.0}, {"q": 8}, SHAPES)
    with pytest.raises(AdapterError, match=r"has rank 8, and 3 principal components .* rank of 3 or less"):
        ranks_by_variance({"q": torch.ones(3)}, {"q": 8}, SHAPES)
