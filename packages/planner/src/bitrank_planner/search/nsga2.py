"""NSGA-II on (loss, bytes) from a warm start: the evolutionary half of QR-Adaptor and its successor AutoQRA.

As there, the search starts from measured sensitivities brought under the budget by one-step downgrades, has
two objectives and mutates by one step. The differences are:

- A plan above the budget is repaired, never evaluated, and random steps spend its unused bytes: only the
  budget counts here. All plans are therefore near the budget, and the second objective separates plans of
  nearly equal loss.
- Every value is a real evaluation.
- The gene of a matrix is one position on its ladder of non-dominated options instead of a bit width and a
  rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bitrank_planner.greedy import greedy
from bitrank_planner.problem import Plan, Problem
from bitrank_planner.search.evaluation_budget import EvaluationBudget, Found
from bitrank_planner.search.ladders import Ladders, Places, step
from bitrank_planner.search.optuna_import import quiet_optuna

_PATIENCE = 200  # proposals in a row without a new plan before the search ends
_STUCK = 50  # proposals in a row without a new plan; from then on random plans replace known children
_TRIES = 10  # attempts to generate a child that is not known
_PROPORTION = 40 / 12  # ratio of population to generations in QR-Adaptor
_SHARE = 0.1  # share of the matrices that step in the first population


def nsga2(
    problem: Problem,
    evaluate: Callable[[Plan], float],
    evaluations: int,
    seed: int,
    journal: Path | None = None,
) -> Found:
    """Return the best plan evaluated by NSGA-II (Optuna's selection by domination and crowding).

    Population and number of generations keep QR-Adaptor's ratio of 40 to 12. The first population is the plan
    of :func:`~bitrank_planner.greedy` and variants with a tenth of the matrices one step away. A child takes
    each gene from one of two parents (binary tournaments); then each matrix steps with probability
    1/matrices, at least one. If only known plans are proposed for long, random plans on the same ladders
    replace children that are known. Arguments, result and errors are those of
    :func:`~bitrank_planner.search.random_search`. Raises :class:`~bitrank_planner.PlanError` also if Optuna
    is not installed.
    """
    budget = EvaluationBudget("nsga2", problem, evaluate, evaluations, journal, _PATIENCE)
    ladders = Ladders(problem, non_dominated_only=True)
    offspring = _OffspringGenerator(budget, ladders, np.random.default_rng(seed))
    population = max(2, round(math.sqrt(evaluations * _PROPORTION)))
    with quiet_optuna("nsga2") as optuna:
        sampler = optuna.samplers.NSGAIISampler(
            population_size=population, seed=seed, child_generation_strategy=offspring.child
        )
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        for places in offspring.first(ladders.places(greedy(problem).choices), population):
            study.enqueue_trial(_genes(places))
        while budget.going:
            trial = study.ask()
            # Optuna assigns a generation to an enqueued trial only when this property is read.
            _ = trial.relative_params
            places = [trial.suggest_int(str(i), 0, top) for i, top in enumerate(ladders.tops)]
            study.tell(trial, [budget.value(ladders.choices(places)), -ladders.spare(places)])
    return budget.found()


class _OffspringGenerator:
    """Generates plans that fit and, if possible, that are not known."""

    def __init__(self, budget: EvaluationBudget, ladders: Ladders, random: np.random.Generator) -> None:
        self._budget = budget
        self._ladders = ladders
        self._random = random
        self._stuck = False

    def first(self, warm: Places, population: int) -> list[Places]:
        """The warm start and its variants."""
        count = max(1, round(_SHARE * len(warm)))
        variants = [step(warm, self._ladders.tops, count, self._random) for _ in range(population - 1)]
        return [warm, *(self._ladders.cheapest(variant, self._random) for variant in variants)]

    def child(self, study: Any, space: dict[str, Any], parents: list[Any]) -> dict[str, int]:
        """Genes of a new plan; implements Optuna's ``child_generation_strategy``."""
        self._stuck = self._stuck or self._budget.repeats >= _STUCK
        for attempt in range(2 * _TRIES if self._stuck else _TRIES):
            # In a small problem every step from the few parents can lead back to known plans.
            random = attempt >= _TRIES
            places = self._ladders.random(self._random) if random else self._bred(parents)
            if not self._budget.has(self._ladders.choices(places)):
                break
        return {name: gene for name, gene in _genes(places).items() if name in space}

    def _parent(self, parents: list[Any]) -> Places:
        """The winner of a binary tournament: the dominating parent, the first if neither dominates."""
        one, other = (parents[i] for i in self._random.integers(len(parents), size=2))
        beaten = (
            all(b <= a for a, b in zip(one.values, other.values, strict=True)) and one.values != other.values
        )
        params = (other if beaten else one).params
        return [params[str(i)] for i in range(len(self._ladders.ladders))]

    def _bred(self, parents: list[Any]) -> Places:
        one, other = self._parent(parents), self._parent(parents)
        places = [int(gene) for gene in np.where(self._random.random(len(one)) < 0.5, one, other)]
        count = max(1, int(self._random.binomial(len(one), 1 / len(one))))
        return self._ladders.cheapest(step(places, self._ladders.tops, count, self._random), self._random)


def _genes(places: Places) -> dict[str, int]:
    return {str(i): place for i, place in enumerate(places)}
