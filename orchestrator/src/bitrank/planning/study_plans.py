"""Plans of a study: made in parallel, saved in the results folder, and reused for the same inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bitrank_planner import SEARCHES

from bitrank.errors import UserError, unknown
from bitrank.planning.budget import counted_with, parse_budget, sizes_of
from bitrank.planning.data_seconds import data_of, gathering_seconds
from bitrank.planning.equal_bytes import fit_arm
from bitrank.planning.learning_rates import Cell, cell_of
from bitrank.planning.make_plan import PlanRequest, PlanResult, make_plan
from bitrank.planning.planned_arms import request_from_spec
from bitrank.planning.planner_studies import PlannerStudy
from bitrank.planning.planners import planner_names
from bitrank.planning.study_arms import STUDY_ARMS, StudyArm, find_study_arm
from bitrank.planning.study_plan_place import plan_dependencies, plan_path
from bitrank.planning.study_records import config_name
from bitrank.process.worker import begin_worker
from bitrank.spec.configs import CONFIGS, PLAN_QUANTIZER, Config, PlannedArm
from bitrank.spec.inits import SENSITIVITIES
from bitrank.spec.make_spec import make_spec
from bitrank.spec.plan_file import plan_data, read_plan, save_plan
from bitrank.spec.profiles import Profile
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind

# AdaLoRA starts with a multiple of its final rank, as in 12 → 4 and in the authors' scripts.
_HEADROOM = 1.5


def check_arms(names: Sequence[str]) -> None:
    """Raise :class:`UserError` for a name that is neither an arm of studies, nor a planner, nor a config."""
    known = [*planner_names(), *STUDY_ARMS, *CONFIGS]
    for name in names:
        if name not in known:
            raise unknown("arm", name, known)


@dataclass(frozen=True)
class StudyRuns:
    """The runs of a study, and the arms without a run: ``left_out`` has arm, budget, task and reason."""

    specs: list[RunSpec]
    left_out: list[dict[str, str]]


def study_specs(
    study: PlannerStudy,
    profile: Profile,
    tasks: Sequence[str],
    overrides: dict[str, Any],
    folder: Path,
    jobs: int,
    on_progress: Any = print,
) -> StudyRuns:
    """Return every run of ``study``, after making its plans or reading them from ``folder``.

    ``jobs`` plans are made at the same time. Arms without a plan are also reported to ``on_progress``.
    """
    measured = {task: _planning_spec(profile, task, overrides) for task in tasks}
    request = [(arm, budget, task) for task in tasks for budget in study.budgets for arm in study.arms]
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=begin_worker) as pool:
        for spec in measured.values():  # before parallel planning, so that each is measured once
            pool.submit(_measured, spec).result()
        order = _longest_first(request, {task: spec.kind for task, spec in measured.items()})
        paths = dict(
            zip(
                order,
                pool.map(
                    _planned,
                    *zip(*[(study, profile, *cell, overrides, folder) for cell in order], strict=True),
                ),
                strict=True,
            )
        )
    result, left_out = [], []
    for arm, budget, task in request:
        path = paths[arm, budget, task]
        on_progress(f"{arm} at {budget} for {task}: {path}")
        if isinstance(path, Path):
            result.append(make_spec(profile, "", task, {**overrides, "plan": str(path)}))
        else:
            name = measured[task].task_name
            left_out.append({"arm": arm, "budget": budget, "task": name, "reason": path})
    result += [make_spec(profile, config, task, overrides) for task in tasks for config in study.configs]
    return StudyRuns([replace(spec, seed=seed) for seed in study.seeds for spec in result], left_out)


def _longest_first(
    request: Sequence[tuple[str, str, str]], kinds: dict[str, str]
) -> list[tuple[str, str, str]]:
    """Return the cells in planning order, the longest first, so that no search runs alone at the end.

    Searches come before other planners, and kinds of tasks with long steps (few steps in a quick study)
    before others.
    """

    def place(cell: tuple[str, str, str]) -> tuple[bool, int]:
        searches = set(find_study_arm(cell[0]).planners) & set(SEARCHES)
        return not searches, task_kind(kinds[cell[2]]).quick_steps

    return sorted(request, key=place)


def _planning_spec(profile: Profile, task: str, overrides: dict[str, Any]) -> RunSpec:
    """Return the spec that plans are measured with; their quantizer is that of ``bitrank plan``."""
    return make_spec(profile, "B-FP", task, {"quantizer": PLAN_QUANTIZER, **overrides})


def _measured(spec: RunSpec) -> None:
    from bitrank.sensitivity.measure import measure

    measure(spec)


def _planned(
    study: PlannerStudy,
    profile: Profile,
    arm: str,
    budget: str,
    task: str,
    overrides: dict[str, Any],
    folder: Path,
) -> Path | str:
    """Return the path of the arm's plan, or the reason why there is none."""
    spec = make_spec(profile, "B-FP", task, overrides)
    planning = _planning_spec(profile, task, overrides)
    path = plan_path(folder, spec, arm, budget)
    made_for = plan_dependencies(planning, study, arm, budget, overrides)
    if path.exists() and read_plan(path).get("made_for") == made_for:
        return path
    try:
        fitted = _fitted_data(spec, planning, arm, budget, overrides)
        data = fitted or _planned_data(planning, study, arm, budget, overrides)
    except ValueError as error:
        path.unlink(missing_ok=True)  # a plan of an earlier command is outdated
        return f"no plan: {error}"
    data["made_for"] = made_for
    path.parent.mkdir(parents=True, exist_ok=True)
    save_plan(data, path)
    return path


def _planned_data(
    spec: RunSpec, study: PlannerStudy, arm: str, budget: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the data of the plan of a planner, of a planned config or of an entry of ``STUDY_ARMS``.

    A quantizer in ``overrides`` replaces that of the arm: the plan is made for the codes of its runs.
    """
    planned = CONFIGS.get(arm)
    if isinstance(planned, PlannedArm):
        entry = StudyArm(planned.about, (planned.planner,), planned.init)
        spec = replace(spec, init=planned.init, quantizer=overrides.get("quantizer", planned.quantizer))
        request = request_from_spec(replace(spec, arm=planned.as_data()))
        result = make_plan(spec, replace(request, budget=budget))
        choosing = result.choosing
    else:
        entry = find_study_arm(arm)
        result, choosing = _best_of(entry, spec, study, budget)
    data = plan_data(result.plan, result.sizes.matrices, result.problem.budget, entry.init, spec.quantizer)
    if entry.adaptive:
        (rank,) = set(result.plan.ranks.values())
        data |= {
            "planner": arm,
            "adaptive": {"init_r": round(_HEADROOM * rank), "target_r": rank, "shrink": True},
        }
    if entry.rank_rule is not None:
        (rank,) = set(result.plan.ranks.values())
        data |= {"planner": arm, "rank_rule": {"name": entry.rank_rule, "rank": rank}}
    measuring = gathering_seconds(spec, data_of(entry.init, spec.quantizer) - {SENSITIVITIES})
    if entry.needs_measurement:
        measuring += result.tables.seconds
    return data | {"planning_seconds": {"measuring": measuring, "choosing": choosing}}


def _fitted_data(
    spec: RunSpec, planning: RunSpec, arm: str, budget: str, overrides: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the data of the plan file of a config at ``budget``; None if ``arm`` has no rules of its own.

    The seconds of what the arm's start and quantizer read of the training data count, those of the
    measurement of ``planning`` among them. A quantizer in ``overrides`` replaces the arm's, as in its runs.
    Raises :class:`UserError` if the config does not fit.
    """
    config = CONFIGS.get(arm)
    if not isinstance(config, Config):
        return None
    own = config.settings.get("quantizer", spec.quantizer)
    settings = {"init": spec.init, **config.settings, "quantizer": overrides.get("quantizer", own)}
    sizes = counted_with(sizes_of(spec), settings["quantizer"])
    limit = parse_budget(budget, sizes)
    fitted = fit_arm(replace(config, settings=settings), sizes, limit)
    measuring = gathering_seconds(planning, data_of(settings["init"], settings["quantizer"]))
    return {
        "planner": arm,
        "budget": limit,
        "bytes": fitted.nbytes,
        "init": settings["init"],
        "quantizer": settings["quantizer"],
        "precision": fitted.precision,
        "ranks": fitted.ranks,
        "rank_rule_of": {"config": arm, **fitted.fields},
        "shapes": {name: list(sizes.matrices[name].shape) for name in fitted.precision},
        "planning_seconds": {"measuring": measuring, "choosing": 0.0},
    }


def _best_of(entry: StudyArm, spec: RunSpec, study: PlannerStudy, budget: str) -> tuple[PlanResult, float]:
    """Return the plan of the arm's planners with the least loss after its short training, and the seconds of
    all of them."""
    results = []
    for planner in entry.planners:
        request = PlanRequest(
            budget, planner, evaluations=study.evaluations, steps=study.tries, draw=entry.draw
        )
        results.append(make_plan(spec, request))
    best = min(results, key=lambda result: result.trained_loss or 0.0)
    return best, sum(result.choosing for result in results)


def longer_cells(specs: Sequence[RunSpec], study: PlannerStudy) -> dict[Cell, str]:
    """Return config and task → path of the plan whose planning seconds are spent on its training.

    Cells that train as long as usual are left out. Raises :class:`UserError` if the other plan does not
    exist, or the task is trained by epochs.
    """
    longer: dict[Cell, str] = {}
    for spec in specs:
        for arm, budget in ((arm, budget) for arm in study.arms for budget in study.budgets):
            other = find_study_arm(arm).longer_by
            if other is None or spec.plan is None or spec.config != config_name(arm, budget):
                continue
            path = Path(spec.plan).with_name(f"{config_name(other, budget)}.json")
            if not path.exists():
                raise UserError(
                    f"{spec.config} trains longer by the planning time of {other}, which has no plan at "
                    f"{budget}; add {other} to --arms"
                )
            if spec.steps is None:
                raise UserError(
                    f"{spec.config} needs a number of steps to add to, and {spec.task_name} trains by "
                    "epochs; give --set steps=…"
                )
            longer[cell_of(spec)] = str(path)
    return longer


def trained_longer(spec: RunSpec, other_plan: str, seconds_per_step: float) -> RunSpec:
    """Return ``spec`` with the planning seconds of ``other_plan`` as further steps.

    Those of gathering data for the quantizer, which both have, are spent already.
    """
    assert spec.steps is not None and spec.plan is not None, "checked by longer_cells"
    own = read_plan(Path(spec.plan))["planning_seconds"].get("measuring", 0.0)
    seconds = max(0.0, sum(read_plan(Path(other_plan))["planning_seconds"].values()) - own)
    return replace(spec, steps=spec.steps + math.ceil(seconds / seconds_per_step))


def planning_costs(specs: Sequence[RunSpec], rate_seconds: Mapping[Cell, float]) -> list[dict[str, Any]]:
    """Return the costs and sizes of the plans of ``specs``, one row per arm and task.

    ``rate_seconds`` are those of the runs of the grid of learning rates, by config and task. A config at its
    own bytes has neither plan nor budget.
    """
    rows = []
    for cell, spec in {cell_of(spec): spec for spec in specs}.items():
        rows.append(
            {
                "config": spec.config,
                "task": spec.task_name,
                **(_plan_costs(spec.plan) if spec.plan else {}),
                "rates_s": rate_seconds.get(cell, 0.0),
                "learning_rate": spec.learning_rate,
                "steps": spec.steps,
            }
        )
    return rows


def _plan_costs(plan: str) -> dict[str, Any]:
    data = json.loads(Path(plan).read_text())
    seconds = data["planning_seconds"]
    return {
        "planned_bytes": data["bytes"],
        "budget": data["budget"],
        "measuring_s": seconds["measuring"],
        "choosing_s": seconds["choosing"],
        "predicted_nats": data.get("predicted_added_loss"),
    }
