"""NSGA-II on (loss, bytes) from a warm start: the evolutionary half of QR-Adaptor, and of its successor AutoQRA.

Same as there: the start from measured sensitivities brought under the budget by one-step downgrades, the two objectives, mutation by
one step. Different: a plan above the budget is mended, never evaluated, and bytes that a plan leaves over are spent at random, since only
the budget counts here (so all plans lie near it, and the second objective parts near-equals); every value is a real evaluation; a
matrix's gene is one place on its ladder of options worth having, not a bit number and a rank number.
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
_TRIES = 10  # children bred in search of one that was not seen before
_PROPORTION = 40 / 12  # population over generations in QR-Adaptor
_SHARE = 0.1  # of the matrices that step in the first population


def nsga2(
    problem: Problem,
    evaluate: Callable[[Plan], float],
    evaluations: int,
    seed: int,
    journal: Path | None = None,
) -> Found:
    """The best plan that NSGA-II (Optuna's selection by domination and crowding) evaluated.

    The population and the number of generations keep QR-Adaptor's proportion of 40 to 12. The first population is the plan of
    :func:`~bitrank_planner.greedy` and variants with a tenth of the matrices one step off; a child takes each gene from either of two
    parents (binary tournaments), then each matrix steps with probability 1/matrices, at least one. Arguments, result and errors as for
    :func:`~bitrank_planner.search.random_search`; :class:`~bitrank_planner.PlanError` as well when Optuna is not installed.
    """
    budget = EvaluationBudget("nsga2", problem, evaluate, evaluations, journal, _PATIENCE)
    ladders = Ladders(problem, worth=True)
    nursery = _Nursery(budget, ladders, np.random.default_rng(seed))
    population = max(2, round(math.sqrt(evaluations * _PROPORTION)))
    with quiet_optuna("nsga2") as optuna:
        sampler = optuna.samplers.NSGAIISampler(
            population_size=population, seed=seed, child_generation_strategy=nursery.child
        )
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        for places in nursery.first(ladders.places(greedy(problem).choices), population):
            study.enqueue_trial(_genes(places))
        while budget.going:
            trial = study.ask()
            _ = (
                trial.relative_params
            )  # lazily, Optuna gives an enqueued trial no generation; asking for these does
            places = [trial.suggest_int(str(i), 0, top) for i, top in enumerate(ladders.tops)]
            study.tell(trial, [budget.value(ladders.choices(places)), -ladders.spare(places)])
    return budget.found()


class _Nursery:
    """Breeds plans that fit and, if it can, that were not seen before."""

    def __init__(self, budget: EvaluationBudget, ladders: Ladders, random: np.random.Generator) -> None:
        self._budget = budget
        self._ladders = ladders
        self._random = random

    def first(self, warm: Places, population: int) -> list[Places]:
        """The warm start and its variants."""
        count = max(1, round(_SHARE * len(warm)))
        variants = [step(warm, self._ladders.tops, count, self._random) for _ in range(population - 1)]
        return [warm, *(self._ladders.cheapest(variant, self._random) for variant in variants)]

    def child(self, study: Any, space: dict[str, Any], parents: list[Any]) -> dict[str, int]:
        """Genes of a new plan, as Optuna's ``child_generation_strategy`` is asked for them."""
        for _ in range(_TRIES):
            places = self._bred(self._parent(parents), self._parent(parents))
            if not self._budget.has(self._ladders.choices(places)):
                break
        return {name: gene for name, gene in _genes(places).items() if name in space}

    def _parent(self, parents: list[Any]) -> Places:
        """The winner of two drawn at random: the one that dominates, the first of equals."""
        one, other = (parents[i] for i in self._random.integers(len(parents), size=2))
        beaten = (
            all(b <= a for a, b in zip(one.values, other.values, strict=True)) and one.values != other.values
        )
        params = (other if beaten else one).params
        return [params[str(i)] for i in range(len(self._ladders.ladders))]

    def _bred(self, one: Places, other: Places) -> Places:
        places = [int(gene) for gene in np.where(self._random.random(len(one)) < 0.5, one, other)]
        count = max(1, int(self._random.binomial(len(one), 1 / len(one))))
        return self._ladders.cheapest(step(places, self._ladders.tops, count, self._random), self._random)


def _genes(places: Places) -> dict[str, int]:
    return {str(i): place for i, place in enumerate(places)}
