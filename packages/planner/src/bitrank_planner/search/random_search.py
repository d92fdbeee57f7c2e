"""Random search: the control that every other search has to beat at the same number of evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bitrank_planner.problem import Plan, Problem
from bitrank_planner.search.evaluation_budget import EvaluationBudget, Found
from bitrank_planner.search.ladders import Ladders

_PATIENCE = (
    1000  # proposals in a row without a new plan: the problem has no more plans than that many draws find
)


def random_search(
    problem: Problem,
    evaluate: Callable[[Plan], float],
    evaluations: int,
    seed: int,
    journal: Path | None = None,
) -> Found:
    """The best of ``evaluations`` random plans that fit; no prediction is used.

    Every option of every matrix is equally likely; a draw above the budget is mended by random steps down (see
    :meth:`~bitrank_planner.search.ladders.Ladders.repair`), so plans at the budget's edge are likelier than by a uniform draw over all
    plans that fit. ``evaluate`` returns a loss in nats, lower is better. Raises :class:`~bitrank_planner.Infeasible` and
    :class:`~bitrank_planner.PlanError` (a limit on trainable numbers, no finite loss).
    """
    budget = EvaluationBudget("random", problem, evaluate, evaluations, journal, _PATIENCE)
    ladders, random = Ladders(problem, worth=False), np.random.default_rng(seed)
    while budget.going:
        budget.value(ladders.choices(ladders.random(random)))
    return budget.found()
