"""Bayesian optimisation from a warm start: the second half of QR-Adaptor.

Same as there: a Gaussian process with a Matérn-5/2 kernel and expected improvement, started from measured sensitivities. Different: the
process sees the tilts of :mod:`~bitrank_planner.search.tilts`, a dozen or so numbers, because over the 210 choices of a small language
model it learns nothing in a hundred evaluations; it is a solver by itself, not a polish of NSGA-II's result; improvement is taken in
logarithms (Optuna's logEI, which has the same maximum); every value is a real evaluation of a plan that fits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bitrank_planner.problem import Plan, Problem
from bitrank_planner.search.evaluation_budget import EvaluationBudget, Found
from bitrank_planner.search.optuna_import import quiet_optuna
from bitrank_planner.search.tilts import Tilts

_PATIENCE = 40  # proposals in a row without a new plan before the search ends
_STARTUP = 10  # plans, or a quarter of the evaluations, before the process is asked


def bayes(
    problem: Problem,
    evaluate: Callable[[Plan], float],
    evaluations: int,
    seed: int,
    journal: Path | None = None,
) -> Found:
    """The best plan that Bayesian optimisation over tilted costs evaluated.

    The first plan is that of :func:`~bitrank_planner.greedy` (no tilt), the next few are random tilts, the rest maximise expected
    improvement; after tilts that give a plan seen before, the next ones are drawn at random. Arguments, result and errors as for
    :func:`~bitrank_planner.search.random_search`; :class:`~bitrank_planner.PlanError` as well when Optuna or torch is not installed.
    """
    budget = EvaluationBudget("bayes", problem, evaluate, evaluations, journal, _PATIENCE)
    tilts, random = Tilts(problem), np.random.default_rng(seed)
    with quiet_optuna("bayes", "torch") as optuna:
        startup = max(1, min(_STARTUP, evaluations // 4))
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=True)
        study = optuna.create_study(sampler=sampler)
        study.enqueue_trial(dict.fromkeys(tilts.names, 0.0))
        while budget.going:
            trial = study.ask()
            point = {
                name: trial.suggest_float(name, -tilts.limit(name), tilts.limit(name)) for name in tilts.names
            }
            study.tell(trial, budget.value(tilts.choices(point)))
            if budget.repeats:
                study.enqueue_trial(tilts.random(random))
    return budget.found()
