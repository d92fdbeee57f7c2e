"""Bayesian optimization from a warm start: the second half of QR-Adaptor.

As in QR-Adaptor, a Gaussian process with a Matérn-5/2 kernel and expected improvement starts from measured
sensitivities. The differences are:

- The inputs are the tilts of :mod:`~bitrank_planner.search.tilts`, about a dozen numbers. Over the 210
  choices of a small language model, a Gaussian process learns nothing in a hundred evaluations.
- It is a solver by itself and does not refine the result of NSGA-II.
- It maximizes the logarithm of expected improvement (Optuna's logEI), which has the same maximum.
- Every value is a real evaluation of a plan that fits.
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
_STARTUP = 10  # plans before the Gaussian process is used; at most a quarter of the evaluations


def bayes(
    problem: Problem,
    evaluate: Callable[[Plan], float],
    evaluations: int,
    seed: int,
    journal: Path | None = None,
) -> Found:
    """Return the best plan evaluated by Bayesian optimization over tilted costs.

    The first plan is that of :func:`~bitrank_planner.greedy` (no tilt), the next ones have random tilts, the
    rest maximize expected improvement. If tilts give a known plan, the next ones are drawn at random.
    Arguments, result and errors are those of :func:`~bitrank_planner.search.random_search`. Raises
    :class:`~bitrank_planner.PlanError` also if Optuna or torch is not installed.
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
