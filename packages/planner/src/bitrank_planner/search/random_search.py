"""Random search: the control for every other search at the same number of evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bitrank_planner.errors import PlanError
from bitrank_planner.problem import Plan, Problem
from bitrank_planner.search.evaluation_budget import EvaluationBudget, Found
from bitrank_planner.search.ladders import Ladders

# Proposals in a row without a new plan before the search ends: the problem has probably no further plan.
_PATIENCE = 1000


def random_plan(problem: Problem, draw: int) -> Plan:
    """Return the random plan number ``draw`` that fits, without any evaluation or predicted cost.

    Plans of several draws are the null distribution of a planner. They are distributed as the proposals of
    :func:`random_search`. Raises :class:`~bitrank_planner.Infeasible` if no plan fits and
    :class:`~bitrank_planner.PlanError` for ties or a limit on trainable numbers.
    """
    if problem.max_trainable is not None or problem.ties:
        raise PlanError(
            "random plans keep one limit, bytes: leave out ties and the limit on trainable numbers, or use "
            "the planner 'exact'"
        )
    problem.check_feasible()
    ladders = Ladders(problem, non_dominated_only=False)
    places = ladders.random(np.random.default_rng(draw))
    return problem.plan(ladders.choices(places), "random-plan")


def random_search(
    problem: Problem,
    evaluate: Callable[[Plan], float],
    evaluations: int,
    seed: int,
    journal: Path | None = None,
) -> Found:
    """Return the best of some random plans that fit, without any predicted cost.

    There are ``evaluations`` of them. Every option of every matrix is equally likely. Random steps down
    repair a draw above the budget (see :meth:`~bitrank_planner.search.ladders.Ladders.repair`), so plans near
    the budget are more likely than under a uniform distribution over the plans that fit. ``evaluate`` returns
    a loss in nats, lower is better; ``journal`` is the file from which an interrupted search resumes. Raises
    :class:`~bitrank_planner.Infeasible` if no plan fits and :class:`~bitrank_planner.PlanError` for a limit
    on trainable numbers or if no loss is finite.
    """
    budget = EvaluationBudget("random", problem, evaluate, evaluations, journal, _PATIENCE)
    ladders, random = Ladders(problem, non_dominated_only=False), np.random.default_rng(seed)
    while budget.going:
        budget.value(ladders.choices(ladders.random(random)))
    return budget.found()
