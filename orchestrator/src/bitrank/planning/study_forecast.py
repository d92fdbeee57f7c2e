"""Forecast the hours of a study before it starts, from the time of one run of each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from bitrank_planner import SEARCHES

from bitrank.errors import UserError
from bitrank.forecast.forecast import forecast
from bitrank.forecast.workload import workload
from bitrank.planning.budget import Sizes, parse_budget, sizes_of
from bitrank.planning.equal_bytes import fit_arm
from bitrank.planning.planner_studies import PlannerStudy
from bitrank.planning.study_arms import find_study_arm
from bitrank.process.compute import Compute
from bitrank.spec.configs import CONFIGS, Config, find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import Profile
from bitrank.spec.races import RACES
from bitrank.spec.run_spec import RunSpec

_COST_BASES = 3  # cost bases of a race, each with one candidate per smallest rank
_CONFIG = "B-FP"  # its forecast time is used for every arm


@dataclass(frozen=True)
class TaskForecast:
    """``runs`` of ``seconds`` each on ``task``, and ``planning`` seconds of short trainings; by ``basis``.

    Learning rates are chosen by ``rate_runs`` of ``rate_seconds``. ``unfit`` arms and budgets have no run.
    """

    task: str
    runs: int
    seconds: float
    planning: float
    basis: str
    rate_runs: int = 0
    rate_seconds: float = 0.0
    unfit: int = 0

    @property
    def total(self) -> float:
        """Seconds of all runs and short trainings, one after the other."""
        return self.runs * self.seconds + self.rate_runs * self.rate_seconds + self.planning


def forecast_study(
    study: PlannerStudy, profile: Profile, tasks: Sequence[str], overrides: dict[str, Any], store: str
) -> list[TaskForecast]:
    """Return the forecast of each task; measuring the models and exact solutions are not counted.

    One run takes as long as one of B-FP, by the speed of finished runs in ``store`` or of this machine's
    matrix products. A run of the grid of learning rates is not tested.
    """
    found = []
    for task in tasks:
        spec = make_spec(profile, _CONFIG, task, overrides)
        seconds, basis = _time_of_run(spec, store)
        rate_seconds, _ = _time_of_run(replace(spec, tested=False), store)
        steps = workload(spec, Compute.of(spec).device).steps
        short = trained_steps(study) * len(study.budgets)
        unfit = _not_fitting(study, sizes_of(spec))
        planning = short * seconds / steps
        runs, rate_runs = run_counts(study, unfit)
        found.append(TaskForecast(task, runs, seconds, planning, basis, rate_runs, rate_seconds, unfit))
    return found


def run_counts(study: PlannerStudy, unfit: int = 0) -> tuple[int, int]:
    """Return the numbers of runs of ``study`` on one task: reported ones, and those that choose a rate.

    ``unfit`` is the number of arms and budgets without a run.
    """
    cells = len(study.arms) * len(study.budgets) + len(study.configs) - unfit
    grid = len(study.rates) if len(study.rates) > 1 else 0
    return cells * len(study.seeds), cells * grid


def _not_fitting(study: PlannerStudy, sizes: Sizes) -> int:
    """Return the number of configs and budgets of which the config does not fit the budget."""
    configs = [arm for name in study.arms if isinstance(arm := CONFIGS.get(name), Config)]
    return sum(
        not _fits(config, sizes, parse_budget(budget, sizes))
        for config in configs
        for budget in study.budgets
    )


def _fits(config: Config, sizes: Sizes, budget: int) -> bool:
    try:
        fit_arm(config, sizes, budget)
    except UserError:
        return False
    return True


def trained_steps(study: PlannerStudy) -> int:
    """Return the optimizer steps that the planners of all arms of ``study`` train at one budget."""
    planners = [name for arm in study.arms for name in find_study_arm(arm).planners]
    searched = sum(study.evaluations * study.tries for name in planners if name in SEARCHES)
    return searched + sum(_race_steps(name, study.tries) for name in planners if name in RACES)


def _race_steps(name: str, tries: int) -> int:
    plans, steps = _COST_BASES * len(RACES[name].least_ranks), 0
    for number in count():
        if plans == 1:
            break
        steps, plans = steps + plans * tries * 2**number, (plans + 1) // 2
    return steps


def _time_of_run(spec: RunSpec, store: str) -> tuple[float, str]:
    config, matrices = find_config(_CONFIG), sizes_of(spec).outline.matrices
    blocks = [matrix for matrix in matrices if matrix.adaptable]
    precision, ranks = config.precision.assign_formats(matrices), config.rank.assign_ranks(blocks)
    parts = forecast(spec, precision, ranks, store)
    return parts.seconds, parts.basis


def _rates_text(task: TaskForecast) -> str:
    if not task.rate_runs:
        return ""
    return f"up to {task.rate_runs} of about {task.rate_seconds:,.0f} s that choose learning rates, "


def _unfit_text(task: TaskForecast) -> str:
    return f"; {task.unfit} pairs of arm and budget that do not fit" if task.unfit else ""


def forecast_lines(found: Sequence[TaskForecast], jobs: int) -> list[str]:
    """Return the forecast as text: a line for each task, and the hours with ``jobs`` runs at a time."""
    lines = []
    for task in found:
        lines.append(
            f"{task.task}: {task.runs} runs of about {task.seconds:,.0f} s ({task.basis}), "
            f"{_rates_text(task)}and {task.planning / 3600:.1f} h of short trainings by planners"
            f"{_unfit_text(task)}"
        )
    hours = sum(task.total for task in found) / 3600 / jobs
    lines.append(
        f"in all about {hours:.1f} h with {jobs} at a time, if nothing is finished yet; measuring the models "
        "is not counted"
    )
    return lines
