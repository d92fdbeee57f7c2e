"""Ablations fix the rank or the format of every matrix and keep the rest of the problem."""

from __future__ import annotations

import pytest
from bitrank_planner import Item, Option, PlanError, Problem, bits_only, exact, rank_only
from made import FORMATS, RANKS, language_model


def test_bits_only_fixes_every_rank() -> None:
    plan = exact(bits_only(language_model(21, 4.5), 8))
    assert set(plan.ranks.values()) == {8} and len(set(plan.precision.values())) > 1


def test_rank_only_fixes_every_format() -> None:
    plan = exact(rank_only(language_model(21, 4.5), "int3-g64"))
    assert set(plan.precision.values()) == {"int3-g64"} and len(set(plan.ranks.values())) > 1


@pytest.mark.parametrize("bits", [3.25, 4.5, 6.0])
def test_joint_plan_is_never_worse_than_an_ablation(bits: float) -> None:
    problem = language_model(35, bits)
    joint = exact(problem).cost
    for rank in RANKS[:4]:
        ablated = bits_only(problem, rank)
        assert ablated.smallest > ablated.budget or joint <= exact(ablated).cost * (1 + 1e-6)
    for fmt in FORMATS:
        ablated = rank_only(problem, fmt)
        assert ablated.smallest > ablated.budget or joint <= exact(ablated).cost * (1 + 1e-6)


def test_bits_only_keeps_options_of_a_matrix_without_an_adapter() -> None:
    table = Item("embedding", (Option("int4", 0, 5, 1.0), Option("int8", 0, 9, 0.1)))
    problem = Problem(
        (table, Item("up", (Option("int4", 2, 5, 1.0), Option("int4", 8, 9, 0.1)), shape=(8, 8))), 100
    )
    assert bits_only(problem, 8).items[0] == table and len(bits_only(problem, 8).items[1].options) == 1


def test_value_that_is_not_offered_raises_with_the_offered_ones() -> None:
    problem = language_model(7, 4.5)
    with pytest.raises(PlanError, match="is not offered with rank 3; offered: int2-g64"):
        bits_only(problem, 3)
    with pytest.raises(PlanError, match="is not offered with nf4"):
        rank_only(problem, "nf4")
