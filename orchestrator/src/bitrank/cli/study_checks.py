"""Checks of a study before anything is measured: planning and training may take hours."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from bitrank.errors import UserError
from bitrank.planning.budget import parse_budget, sizes_of
from bitrank.planning.learning_rates import SEED, grid_specs
from bitrank.planning.planner_studies import PlannerStudy
from bitrank.planning.study_arms import find_study_arm
from bitrank.planning.study_plans import StudyRuns
from bitrank.spec.make_spec import check
from bitrank.spec.run_spec import RunSpec


def check_study(study: PlannerStudy, samples: Sequence[RunSpec]) -> None:
    """Raise :class:`UserError` for what a study cannot plan or train. Each task has a spec in ``samples``."""
    _check_once("budget", study.budgets)
    _check_once("arm", (*study.arms, *study.configs))
    _check_once("seed", study.seeds)
    _check_once("task", [spec.task_name for spec in samples], "; files need names of their own")
    if SEED in study.seeds:
        raise UserError(
            f"seed {SEED} is that of the runs that choose learning rates, and no reported run may have it; "
            "give another with --seeds"
        )
    for spec in samples:
        _check_rates(study.rates, spec)
        _check_budgets(study.budgets, spec)
        _check_longer(study, spec)


def check_has_runs(planned: StudyRuns) -> None:
    """Raise :class:`UserError` with every reason if no arm of the study has a plan."""
    if planned.specs:
        return
    reasons = [
        f"{row['arm']} at {row['budget']} for {row['task']}: {row['reason']}" for row in planned.left_out
    ]
    raise UserError(
        "nothing can be trained, because no arm has a plan; give larger --budgets or other --arms. "
        + "; ".join(reasons)
    )


def _check_once(kind: str, values: Iterable[Hashable], hint: str = "") -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise UserError(f"the study has the {kind} {value} twice; give it once{hint}")
        seen.add(value)


def _check_rates(factors: Sequence[float], spec: RunSpec) -> None:
    """Raise :class:`UserError` for a rate above the limit, and for factors that give one rate."""
    by_rate: dict[float, float] = {}
    for factor, run in zip(factors, grid_specs([spec], factors), strict=True):
        try:
            check(run)
        except UserError as error:
            raise UserError(
                f"the factor {factor} of --rates does not fit {spec.task_name}, whose learning rate is "
                f"{spec.learning_rate:g}: {error}"
            ) from None
        if run.learning_rate in by_rate:
            raise UserError(
                f"the factors {by_rate[run.learning_rate]} and {factor} of --rates give {spec.task_name} the "
                f"same learning rate, {run.learning_rate:g}; give one of them"
            )
        by_rate[run.learning_rate] = factor


def _check_budgets(budgets: Sequence[str], spec: RunSpec) -> None:
    sizes = sizes_of(spec)
    for budget in budgets:
        parse_budget(budget, sizes)


def _check_longer(study: PlannerStudy, spec: RunSpec) -> None:
    """Raise :class:`UserError` for an arm that trains longer by a plan that nobody makes, or by epochs."""
    for arm in study.arms:
        other = find_study_arm(arm).longer_by
        if other is None:
            continue
        if spec.steps is None:
            raise UserError(
                f"{arm} needs a number of steps to add to, and {spec.task_name} trains by epochs; give "
                "--set steps=…"
            )
        if other not in study.arms:  # a plan of an earlier command may be of other code or settings
            raise UserError(
                f"{arm} trains longer by the planning time of {other}, which the study does not plan; add "
                f"{other} to --arms"
            )
