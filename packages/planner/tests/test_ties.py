"""Ties: matrices that share a format, solved exactly with their ranks free."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bitrank_planner import Infeasible, Item, Option, PlanError, Problem, exact, greedy, random_search
from bitrank_planner.problem import front
from bitrank_planner.ties import join_ties

FORMATS = {"int2": 2, "int4": 4, "int8": 8}
RANKS = (0, 2, 4)


def random_item(name: str, random: np.random.Generator) -> Item:
    """Options of three formats and three ranks with random costs that need not fall with size."""
    size = int(random.integers(8, 40))
    options = tuple(
        Option(fmt, rank, size * bits + 2 * rank * 5, float(random.uniform(0, 1) / bits), rank * 5)
        for fmt, bits in FORMATS.items()
        for rank in RANKS
    )
    return Item(name, options, shape=(8, 8))


def random_problem(seed: int, max_trainable: int | None = None) -> Problem:
    random = np.random.default_rng(seed)
    items = tuple(random_item(name, random) for name in "qokv")
    ties = (("q", "k", "v"),)
    smallest = Problem(items, 0, 7, ties=ties).smallest
    return Problem(items, smallest + int(random.integers(0, 200)), 7, max_trainable, ties)


def least_cost(problem: Problem) -> float:
    """The least cost by enumeration of all plans."""
    choices = itertools.product(*(range(len(item.options)) for item in problem.items))
    plans = (problem.plan(chosen, "all") for chosen in choices)
    return min(plan.cost for plan in plans if problem.fits(plan))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_trainable", [None, 25])
def test_exact_plan_with_ties_equals_enumeration(seed: int, max_trainable: int | None) -> None:
    problem = random_problem(seed, max_trainable)
    plan = exact(problem)
    assert problem.fits(plan) and plan.cost == pytest.approx(least_cost(problem), rel=1e-6)
    assert len({plan.precision[name] for name in "qkv"}) == 1
    assert plan.bound is not None and plan.bound <= plan.cost
    assert list(plan.precision) == ["q", "o", "k", "v"]


def test_ranks_of_tied_matrices_differ_where_that_is_better() -> None:
    def item(name: str, costs: tuple[float, float]) -> Item:
        options = tuple(
            Option("int4", rank, 10 + rank, cost) for rank, cost in zip((0, 4), costs, strict=True)
        )
        return Item(name, options, shape=(8, 8))

    problem = Problem((item("k", (1.0, 0.9)), item("v", (1.0, 0.1))), 24, ties=(("k", "v"),))
    assert exact(problem).ranks == {"v": 4} == greedy(problem).ranks


@pytest.mark.parametrize("seed", range(6))
def test_greedy_keeps_ties_and_budget(seed: int) -> None:
    problem = random_problem(seed)
    plan = greedy(problem)
    assert problem.fits(plan) and plan.cost >= exact(problem).cost - 1e-9


def test_a_tie_costs_no_less_than_free_formats_and_one_that_changes_nothing_costs_the_same() -> None:
    problem = random_problem(3)
    free = exact(Problem(problem.items, problem.budget, problem.fixed))
    assert exact(problem).cost >= free.cost * (1 - 1e-6)
    alone = exact(Problem(problem.items, problem.budget, problem.fixed, ties=(("q",),)))
    assert alone.cost == pytest.approx(free.cost, rel=1e-6)


def test_the_smallest_plan_of_a_problem_is_in_one_format_per_tie() -> None:
    one = Item("a", (Option("x", 0, 1, 1.0), Option("y", 0, 5, 0.5)))
    other = Item("b", (Option("x", 0, 9, 1.0), Option("y", 0, 2, 0.5)))
    assert Problem((one, other), 100).smallest == 3
    tied = Problem((one, other), 6, ties=(("a", "b"),))
    assert tied.smallest == 7
    with pytest.raises(Infeasible, match="the smallest plan takes 7"):
        exact(tied)


def test_pins_within_a_tie_restrict_all_of_it_or_disagree_with_an_error() -> None:
    problem = random_problem(0)
    problem = Problem(problem.items, 10**6, ties=problem.ties)
    plan = exact(problem.pinned({"k": ("int2", None)}))
    assert {plan.precision[name] for name in "qkv"} == {"int2"}
    with pytest.raises(PlanError, match="no common one: q: int2; k: int8; v: int2, int4, int8"):
        problem.pinned({"q": ("int2", None), "k": ("int8", 2)})
    assert exact(problem.pinned({"q": (None, 2), "k": (None, 4)})).ranks["k"] == 4


def test_invalid_ties_are_errors() -> None:
    items = random_problem(0).items
    with pytest.raises(PlanError, match="q is in two ties"):
        Problem(items, 10**6, ties=(("q", "k"), ("q", "v")))
    with pytest.raises(PlanError, match="'w' is no matrix"):
        Problem(items, 10**6, ties=(("q", "w"),))
    problem = Problem(items, 10**6, ties=(("q", "k"),))
    with pytest.raises(PlanError, match="random cannot tie formats"):
        random_search(problem, lambda _: 0.0, 3, seed=0)


def test_joined_options_are_the_non_dominated_combinations() -> None:
    problem = random_problem(1)
    joined = join_ties(problem)
    (tied,) = [item for item in joined.problem.items if item.name == "q + k + v"]
    members = [problem.item(name) for name in "qkv"]
    for fmt in FORMATS:
        choices = [[o for o in item.options if o.format == fmt] for item in members]
        every = [
            (sum(o.nbytes for o in chosen), sum(o.cost for o in chosen), 0)
            for chosen in itertools.product(*choices)
        ]
        kept = [every[index] for index in front(np.array(every))]
        found = [option for option in tied.options if option.format == fmt]
        assert [option.nbytes for option in found] == [nbytes for nbytes, _, _ in kept]
        assert [option.cost for option in found] == pytest.approx([cost for _, cost, _ in kept])


def test_the_front_of_two_figures_equals_that_of_three() -> None:
    random = np.random.default_rng(0)
    figures_OK = np.column_stack([random.integers(0, 9, 60), random.integers(0, 9, 60), np.zeros(60)])
    constant = figures_OK + np.array([0, 0, 1])
    assert front(figures_OK) == front(constant)
