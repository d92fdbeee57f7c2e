from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from bitrank_planner.errors import Infeasible, PlanError
from bitrank_planner.heuristics import RANK_HEURISTICS, at_budget
from bitrank_planner.heuristics.ranks import attention_first, two_stage, uniform
from bitrank_planner.problem import Item, Option, Problem
from hypothesis import given
from hypothesis import strategies as st

OFFERED = (1, 2, 4, 8, 16)


def problem(budget: int, offered=OFFERED) -> Problem:
    """Four 32 × 32 matrices with 64 trainable numbers per rank, and an embedding without an adapter."""
    options = tuple(
        Option(f"int{b}", r, 128 * b + 128 * r, 1 / b + 1 / (r + 1), 64 * r) for b in (4, 8) for r in offered
    )
    blocks = [Item(f"m{i}", options, ("attention", "ffn")[i % 2], i // 2, (32, 32)) for i in range(4)]
    return Problem(
        (*blocks, Item("embed", (Option("int4", 0, 1000, 0.1),), "embedding", shape=(100, 32))),
        budget,
        fixed=24,
    )


def in_format(target: Problem, fmt: str = "int4") -> dict[str, str]:
    return {item.name: "int4" if item.name == "embed" else fmt for item in target.items}


def test_uniform_rule_gets_the_largest_rank_that_fits():
    exact = 24 + 1000 + 4 * (512 + 128 * 8)
    for budget, rank in [(exact, 8), (exact + 4 * 128 * 8 - 1, 8), (exact + 4 * 128 * 8, 16), (10**9, 16)]:
        base = problem(budget)
        plan = at_budget(base, in_format(base), partial(uniform, base.items[:4]))
        assert base.fits(plan)
        assert set(plan.ranks.values()) >= {rank}
        assert min(plan.ranks.values()) == rank
    assert plan.solver == "rule"


def test_ranks_are_rounded_down_to_an_offered_rank_or_up_to_the_smallest():
    base = problem(10**6, offered=(4, 16))
    ranks = iter([[2, 5, 15, 16]])

    def rule(mean: float) -> dict[str, int]:
        if mean > 1:
            raise PlanError("no more")
        return dict(zip(["m0", "m1", "m2", "m3"], next(ranks), strict=True))

    assert at_budget(base, in_format(base), rule).ranks == {"m0": 4, "m1": 4, "m2": 4, "m3": 16}


def test_rank_zero_is_for_matrices_to_which_the_rule_gives_zero():
    base = problem(10**6, offered=(0, 4, 16))
    ranks = iter([[0, 1, 5, 16]])

    def rule(mean: float) -> dict[str, int]:
        if mean > 1:
            raise PlanError("no more")
        return dict(zip(["m0", "m1", "m2", "m3"], next(ranks), strict=True))

    assert at_budget(base, in_format(base), rule).ranks == {"m1": 4, "m2": 4, "m3": 16}


def test_more_bits_at_one_budget_leave_less_rank():
    base = problem(24 + 1000 + 4 * (1024 + 128 * 4))
    rule = partial(attention_first, base.items[:4])
    few, many = (at_budget(base, in_format(base, fmt), rule) for fmt in ("int4", "int8"))
    assert sum(few.ranks.values()) > sum(many.ranks.values())
    assert few.ranks["m0"] > few.ranks["m1"]


def test_a_mean_that_the_rule_rejects_counts_as_too_large():
    base = problem(10**9, offered=(0, *OFFERED))
    plan = at_budget(
        base,
        in_format(base),
        partial(two_stage, base.items[:4], importance={"m0": 1, "m1": 2, "m2": 3, "m3": 4}),
    )
    assert plan.ranks == {"m2": 16, "m3": 16}


def test_infeasible_budget_and_invalid_arguments_raise():
    base = problem(24 + 1000 + 4 * (512 + 128) - 1)
    with pytest.raises(Infeasible) as error:
        at_budget(base, in_format(base), partial(uniform, base.items[:4]))
    assert error.value.smallest == base.budget + 1
    with pytest.raises(PlanError, match="m0 is not offered as nf4"):
        at_budget(base, in_format(base, "nf4"), partial(uniform, base.items[:4]))
    with pytest.raises(PlanError, match="no format for 5 of 5"):
        at_budget(base, {}, partial(uniform, base.items[:4]))
    with pytest.raises(PlanError, match="not all zero"):
        at_budget(
            problem(10**6),
            in_format(base),
            partial(
                RANK_HEURISTICS["parameter_norm"],
                base.items[:4],
                norms=dict.fromkeys(["m0", "m1", "m2", "m3"], 0.0),
            ),
        )


def test_plan_keeps_the_limit_on_trainable_numbers():
    base = replace(problem(10**9), max_trainable=4 * 64 * 5 - 1)
    assert set(at_budget(base, in_format(base), partial(uniform, base.items[:4])).ranks.values()) == {4}


@given(st.integers(5000, 20000), st.sampled_from(["uniform", "linear_decay", "attention_first", "ffn_first"]))
def test_plan_fits_and_doubled_ranks_do_not(budget, name):
    base = problem(budget)
    plan = at_budget(base, in_format(base), partial(RANK_HEURISTICS[name], base.items[:4]))
    assert base.fits(plan)
    assert all(rank in OFFERED for rank in plan.ranks.values())
    doubled_nbytes = plan.nbytes + 128 * sum(plan.ranks.values())
    assert doubled_nbytes > budget or max(plan.ranks.values()) == 16
