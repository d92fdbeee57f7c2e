"""Planners that are controls: ModelOpt's choice of formats, and random plans."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bitrank.planning.budget import Sizes, sizes_of
from bitrank.planning.costs import Choices, make_problem
from bitrank.planning.planners import PLANNERS, modelopt_like, plan_by
from bitrank.planning.restrictions import TIES, present_groups
from bitrank.planning.rules_of_thumb import HIGH, LOW, adapted
from bitrank.sensitivity.tables import Tables
from bitrank.spec.run_spec import RunSpec
from bitrank_planner import Effort, PlanError, Problem, exact


@pytest.fixture(scope="module")
def problem(spec: RunSpec, tables: Tables) -> Problem:
    sizes: Sizes = sizes_of(spec)
    return make_problem(tables, sizes, 9 * sizes.parameters // 8, Choices(ranks=(2, 4, 8, 16)))


def test_modelopt_like_plan_is_the_best_by_scores_alone_with_fused_matrices_in_one_format(
    problem: Problem, tables: Tables
) -> None:
    plan = modelopt_like(problem, tables)
    assert problem.fits(plan) and set(plan.ranks.values()) == {8}
    groups = [group for tie in TIES for group in present_groups(list(plan.precision), tie)]
    assert groups and all(len({plan.precision[name] for name in group}) == 1 for group in groups)

    def score(precision: dict[str, str]) -> float:
        return sum(tables.errors[name][fmt].output for name, fmt in precision.items())

    for other in ("uniform", "hand-made", "random-plan"):
        found = plan_by(other, problem, tables, Effort())
        tied = all(len({found.precision[name] for name in group}) == 1 for group in groups)
        if tied and set(found.ranks.values()) == {8}:
            assert score(plan.precision) <= score(found.precision) * (1 + 1e-6)
    assert plan.cost >= exact(problem).cost * (1 - 1e-6), "its costs are those of the problem"


@pytest.fixture(scope="module")
def crossed(problem: Problem, tables: Tables) -> Problem:
    """``problem`` with matrices of cross-attention, one of them tied to a matrix of another format."""
    items = [
        replace(item, role="cross-attention") if item.layer == 1 and item.role == "attention" else item
        for item in problem.items
    ]
    free = modelopt_like(replace(problem, items=tuple(items)), tables).precision
    crosses = [item.name for item in items if item.role == "cross-attention"]
    pairs = [(name, other) for name in crosses for other in free if free[name] != free[other]]
    return replace(problem, items=tuple(items), ties=(pairs[0],))


@pytest.mark.parametrize("name", [name for name, planner in PLANNERS.items() if planner.keeps_ties])
def test_planners_that_keep_ties_keep_those_of_cross_attention(
    crossed: Problem, tables: Tables, name: str
) -> None:
    wide = replace(crossed, budget=10**9)
    try:
        plan = plan_by(name, crossed, tables, Effort())
    except PlanError:  # the budget has no room for 8 bits everywhere
        plan = plan_by(name, wide, tables, Effort())
        assert wide.fits(plan) and plan.nbytes > crossed.budget
    else:
        assert crossed.fits(plan)


def test_bits_at_the_lowest_rank_are_the_exact_plan_of_a_problem_that_offers_this_rank_alone(
    spec: RunSpec, tables: Tables, problem: Problem
) -> None:
    plan = plan_by("bits-at-lowest-rank", problem, tables, Effort())
    alone = exact(make_problem(tables, sizes_of(spec), problem.budget, Choices(ranks=(2,))))
    assert problem.fits(plan) and set(plan.ranks.values()) == {2}
    assert plan.cost == pytest.approx(alone.cost, rel=1e-6)
    assert plan.cost >= exact(problem).cost * (1 - 1e-6)


def test_draws_are_different_plans_that_fit_and_repeat(problem: Problem, tables: Tables) -> None:
    plans = [plan_by("random-plan", problem, tables, Effort(), draw) for draw in range(20)]
    assert all(problem.fits(plan) for plan in plans) and len({plan.choices for plan in plans}) == 20
    assert plan_by("random-plan", problem, tables, Effort(), 3) == plans[3]
    assert not PLANNERS["random-plan"].keeps_ties


@pytest.mark.parametrize("name", ["all-4", "all-8", "hand-made", "uniform"])
def test_a_plan_has_the_name_of_its_planner(problem: Problem, tables: Tables, name: str) -> None:
    try:
        plan = plan_by(name, problem, tables, Effort())
    except PlanError:  # the budget has no room for 8 bits everywhere
        plan = plan_by(name, replace(problem, budget=10**9), tables, Effort())
    assert plan.solver == name


@pytest.mark.parametrize(
    ("name", "low_rank", "high_rank"), [("low_rank_more_bits", HIGH, LOW), ("low_rank_fewer_bits", LOW, HIGH)]
)
def test_formats_by_rank_go_with_the_ranks_of_the_plan(
    problem: Problem, tables: Tables, name: str, low_rank: str, high_rank: str
) -> None:
    plan = plan_by(name, replace(problem, budget=12 * problem.budget // 10), tables, Effort())
    blocks = [item.name for item in adapted(problem)]
    ranks: dict[str, list[int]] = {HIGH: [], LOW: []}
    for matrix in blocks:
        ranks[plan.precision[matrix]].append(plan.ranks.get(matrix, 0))
    assert max(ranks[low_rank]) <= min(ranks[high_rank]) and min(ranks[low_rank]) < max(ranks[high_rank])
    assert {fmt for matrix, fmt in plan.precision.items() if matrix not in blocks} == {LOW}


def test_rank_rule_without_a_common_format_is_refused(problem: Problem, tables: Tables) -> None:
    names = [item.name for item in problem.items]
    pinned = problem.pinned({names[0]: ("int8", None), names[-1]: ("nf4-dq", None)})
    with pytest.raises(PlanError, match="gradient_probe needs one format for all matrices"):
        plan_by("gradient_probe", pinned, tables, Effort())
