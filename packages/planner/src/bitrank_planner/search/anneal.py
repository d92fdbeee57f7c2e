"""Simulated annealing over one-step neighbours (Kirkpatrick, Gelatt and Vecchi 1983): the second control."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bitrank_planner.problem import Plan, Problem
from bitrank_planner.search.evaluation_budget import EvaluationBudget, Found
from bitrank_planner.search.ladders import Ladders, Places, step

_PATIENCE = 1000  # proposals in a row without a new plan before the search ends
_STUCK = 50  # proposals in a row without a new plan before it restarts from random plans, until one is new
_COOLING = 0.01  # ratio of the last temperature to the first
_SHARE = 0.1  # share of the matrices that step at once at the start


def anneal(
    problem: Problem,
    evaluate: Callable[[Plan], float],
    evaluations: int,
    seed: int,
    journal: Path | None = None,
) -> Found:
    r"""Return the best plan of an annealed walk that starts at a random feasible plan.

    The walk uses no predicted cost. A neighbour has some matrices one step up or down in bytes: a tenth of
    them at first, decreasing linearly to one at the end. If it exceeds the budget, random steps down repair
    it. It is accepted with probability min(1, exp(−Δ/T)), with Δ in nats and T = (mean \|Δ\| so far) ·
    0.01^(share of the evaluations spent). Arguments, result and errors are those of
    :func:`~bitrank_planner.search.random_search`.
    """
    budget = EvaluationBudget("anneal", problem, evaluate, evaluations, journal, _PATIENCE)
    ladders, random = Ladders(problem, non_dominated_only=False), np.random.default_rng(seed)
    walk = _Walk(budget, ladders, random)
    while budget.going:
        walk.go_on()
    return budget.found()


class _Walk:
    def __init__(self, budget: EvaluationBudget, ladders: Ladders, random: np.random.Generator) -> None:
        self._budget = budget
        self._ladders = ladders
        self._random = random
        self._changes: list[float] = []
        self._restart()

    def go_on(self) -> None:
        if self._budget.repeats >= _STUCK:
            self._restart()
            return
        places = self._neighbour()
        value = self._budget.value(self._ladders.choices(places))
        if self._accepts(value):
            self._places, self._value = places, value

    def _restart(self) -> None:
        self._places = self._ladders.random(self._random)
        self._value = self._budget.value(self._ladders.choices(self._places))

    def _neighbour(self) -> Places:
        count = max(1, round(_SHARE * len(self._places) * (1 - self._budget.spent)))
        return self._ladders.repair(step(self._places, self._ladders.tops, count, self._random), self._random)

    def _accepts(self, value: float) -> bool:
        if value <= self._value:
            better = self._value - value
            self._changes += [better] if better and math.isfinite(better) else []
            return True
        if not math.isfinite(value):
            return False
        self._changes.append(value - self._value)
        temperature = float(np.mean(self._changes)) * _COOLING**self._budget.spent
        return bool(self._random.random() < math.exp((self._value - value) / temperature))
