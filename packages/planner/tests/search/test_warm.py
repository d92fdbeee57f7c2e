"""NSGA-II and Bayesian optimization start from the sensitivities and improve on them."""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import optuna
import pytest
from bitrank_planner.errors import PlanError
from bitrank_planner.greedy import greedy
from bitrank_planner.problem import Item, Option, Problem
from bitrank_planner.search import SEARCHES
from bitrank_planner.search.ladders import Ladders
from bitrank_planner.search.tilts import Tilts


@pytest.mark.parametrize(("name", "evaluations"), [("nsga2", 150), ("bayes", 30)])
def test_search_starts_at_greedy_and_improves_on_it(name, evaluations, synthetic):
    problem, evaluate = synthetic
    seen = []
    found = SEARCHES[name](problem, lambda plan: seen.append(plan.choices) or evaluate(plan), evaluations, 0)
    assert seen[0] == greedy(problem).choices
    assert found.value < 0.98 * evaluate(greedy(problem))


@pytest.mark.parametrize("name", ["nsga2", "bayes"])
def test_search_beats_the_median_random_plan(name, synthetic):
    problem, evaluate = synthetic
    values = []
    SEARCHES["random"](problem, lambda plan: values.append(evaluate(plan)) or values[-1], 101, 0)
    assert SEARCHES[name](problem, evaluate, 30, 0).value < statistics.median(values)


def test_search_restores_the_log_level_of_optuna(synthetic):
    before = optuna.logging.get_verbosity()
    SEARCHES["nsga2"](*synthetic, 5, 0)
    assert optuna.logging.get_verbosity() == before


@pytest.mark.parametrize(("name", "module"), [("nsga2", "optuna"), ("bayes", "torch")])
def test_missing_dependency_raises_with_the_install_command(name, module, synthetic, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        PlanError,
        match=rf"{name} needs {module}, which is not installed: pip install 'bitrank-planner\[search\]'",
    ):
        SEARCHES[name](*synthetic, 5, 0)


def test_tilt_groups_are_a_role_in_a_third_of_the_depth():
    options = (Option("int2", 0, 2, 1.0), Option("int4", 0, 4, 0.5))
    ranked = (*options, Option("int2", 1, 3, 0.9))
    items = (
        Item("e", options, "embedding"),
        *(Item(f"m{k}", ranked, "ffn", k, (4, 4)) for k in range(4)),
        Item("h", options[:1], "head"),
    )
    assert Tilts(Problem(items, 20)).names == [
        "loss embedding",
        *(f"{kind} ffn {third}" for third in ("early", "middle", "late") for kind in ("loss", "rank")),
    ]


def test_tilt_moves_bytes_to_its_group(synthetic):
    problem, _ = synthetic
    tilts = Tilts(problem)
    assert tilts.choices({}) == greedy(problem).choices
    untilted = problem.plan(tilts.choices({}), "")
    tilted_loss = problem.plan(tilts.choices({"loss attention early": 2.0}), "")
    ranked = problem.plan(tilts.choices({name: 0.9 for name in tilts.names if name.startswith("rank")}), "")
    early = [item for item in problem.items if item.role == "attention" and item.layer < 4]
    assert _nbytes(tilted_loss, early) > _nbytes(untilted, early)
    assert sum(ranked.ranks.values()) > sum(untilted.ranks.values())


def test_cheapest_steps_down_by_least_loss_per_byte():
    a, b = (
        Item(n, (Option("int2", 0, 10, cost), Option("int4", 0, 20, 0.0)))
        for n, cost in (("a", 3.0), ("b", 1.0))
    )
    ladders = Ladders(Problem((a, b), 30), non_dominated_only=True)
    random = np.random.default_rng(0)
    assert ladders.cheapest([1, 1], random) == [1, 0]
    assert ladders.cheapest([0, 1], random) == [0, 1]
    assert sum(ladders.cheapest([0, 0], random)) == 1


def test_nsga2_leaves_the_known_plans_of_a_small_problem():
    """Steps from the few parents lead back to at most eight of the thousands of plans that fit."""
    random = np.random.default_rng(0)
    items = tuple(
        Item(
            f"m{i}",
            tuple(
                Option(f"int{b}", r, 100 * b + 10 * r, float(random.random() * (8 - b) / 8), 20 * r)
                for b in (2, 4, 8)
                for r in (0, 2, 4)
            ),
            ("attention", "ffn")[i % 2],
            i // 2,
            (64, 32),
        )
        for i in range(6)
    )
    for budget in (2400, 2580, 2800):
        found = SEARCHES["nsga2"](Problem(items, budget), lambda plan: plan.cost, 40, 0)
        assert found.evaluations == 40


def test_proposals_for_a_language_model_are_fast():
    random = np.random.default_rng(0)
    formats, ranks = (2, 3, 4, 5, 6, 8), (2, 4, 8, 16, 32, 48, 64)
    items = tuple(
        Item(
            f"m{i}",
            tuple(
                Option(f"int{b}", r, 40000 * b + 2304 * r, float(random.random() * 4.0**-b / r))
                for b in formats
                for r in ranks
            ),
            ("attention", "ffn")[i % 2],
            i // 7,
            (576, 576),
        )
        for i in range(210)
    )
    problem = Problem(items, 210 * 150000)
    for name in ("random", "anneal", "nsga2"):
        start = time.perf_counter()
        SEARCHES[name](problem, lambda plan: plan.cost, 10, 0)
        assert time.perf_counter() - start < 10
    start = time.perf_counter()
    Tilts(problem).choices({"loss ffn early": 1.0})
    assert time.perf_counter() - start < 3


def _nbytes(plan, items) -> int:
    return sum(
        next(
            o.nbytes
            for o in i.options
            if (o.format, o.rank) == (plan.precision[i.name], plan.ranks.get(i.name, 0))
        )
        for i in items
    )
