"""Validation of problems, and properties of their plans."""

from __future__ import annotations

import math
from typing import Any

import pytest
from bitrank_planner import Infeasible, Item, Option, PlanError, Problem

SMALL, LARGE = Option("int4", 2, 10, 1.0, 4), Option("int8", 8, 30, 0.5, 16)


def item(name: str = "block.0.up", **other: Any) -> Item:
    fields = {"options": (SMALL, LARGE), "role": "ffn", "layer": 0, "shape": (8, 16)}
    return Item(name, **{**fields, **other})


@pytest.mark.parametrize("cost", [math.nan, math.inf, -math.inf])
def test_cost_that_is_not_finite_raises(cost: float) -> None:
    with pytest.raises(
        PlanError, match=r"block\.0\.up as int4 with rank 2 costs .*expected a finite number; measure again"
    ):
        Problem((item(options=(Option("int4", 2, 10, cost),)),), 100)


@pytest.mark.parametrize("rank", [9, 16, -1])
def test_rank_outside_the_matrix_dimensions_raises(rank: int) -> None:
    with pytest.raises(
        PlanError, match=rf"rank {rank} does not fit block\.0\.up of shape \(8, 16\): expected 0 to 8"
    ):
        Problem((item(options=(Option("int4", rank, 10, 1.0),)),), 100)


def test_full_rank_is_allowed() -> None:
    assert Problem((item(options=(Option("int4", 8, 10, 1.0),)),), 100).smallest == 10


def test_no_items_no_options_and_duplicate_names_raise() -> None:
    with pytest.raises(PlanError, match="there is nothing to plan"):
        Problem((), 100)
    with pytest.raises(PlanError, match="has no option"):
        Problem((item(options=()),), 100)
    with pytest.raises(PlanError, match="two matrices have the same name"):
        Problem((item(), item()), 100)


def test_negative_bytes_raise() -> None:
    with pytest.raises(PlanError, match="takes -1 bytes"):
        Problem((item(options=(Option("int4", 2, -1, 1.0),)),), 100)


def test_infeasible_budget_raises_with_the_smallest_size() -> None:
    problem = Problem((item("a"), item("b")), budget=24, fixed=5)
    with pytest.raises(
        Infeasible, match=r"a budget of 24 bytes is too small: the smallest plan takes 25 \(5 of them"
    ) as caught:
        problem.check_feasible()
    assert caught.value.smallest == problem.smallest == 25


def test_plan_sums_bytes_cost_and_trainable_numbers() -> None:
    problem = Problem((item("a"), item("b", options=(Option("bf16", 0, 7, 0.25),))), budget=42, fixed=5)
    plan = problem.plan((1, 0), "by hand")
    assert (plan.nbytes, plan.cost, plan.trainable) == (42, 0.75, 16)
    assert plan.precision == {"a": "int8", "b": "bf16"} and plan.ranks == {"a": 8}
    assert problem.fits(plan) and problem.find(plan.precision, plan.ranks, "by hand") == plan


def test_pinned_problem_keeps_only_matching_options() -> None:
    pinned = Problem((item("a"), item("b")), 100).pinned({"a": ("int8", None), "b": (None, 2)})
    assert [i.options for i in pinned.items] == [(LARGE,), (SMALL,)]


def test_unknown_names_and_choices_raise_with_valid_ones() -> None:
    problem = Problem((item("model.up"), item("model.down")), 100)
    with pytest.raises(PlanError, match=r"'model\.upp' is no matrix of this problem; nearest: model\.up"):
        problem.pinned({"model.upp": ("int8", None)})
    with pytest.raises(PlanError, match="cannot be int3 with rank any; offered: int4, int8; ranks 2, 8"):
        problem.pinned({"model.up": ("int3", None)})
    with pytest.raises(PlanError, match="is not offered as int4 with rank 8"):
        problem.find({"model.up": "int4", "model.down": "int4"}, {"model.up": 8, "model.down": 2}, "by hand")
