"""Studies of planners: plans of several planners at equal bytes are trained in the same way.

The runs therefore differ only in bits and ranks. A study is an entry of :data:`STUDIES`. An arm is a planner
(see :mod:`~bitrank.planning.make_plan`), ``adalora`` or ``adalora-loftq``: the last two use the uniform
plan's formats, and AdaLoRA redistributes ranks around the uniform plan's rank and removes pruned ranks, so
the final model has the same bytes. Plans are saved as JSON in the results folder with the seconds that they
took. An existing plan for the same data, model, settings and code is reused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bitrank_planner import SEARCHES

from bitrank.errors import unknown
from bitrank.planning.make_plan import PlanRequest, make_plan
from bitrank.process.fast_imports import quiet_libraries
from bitrank.process.lifetime import exit_with_parent
from bitrank.spec.configs import CONFIGS, DEFAULT_CONFIGS, Config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.plan_file import plan_data, read_plan, save_plan
from bitrank.spec.profiles import Profile
from bitrank.spec.provenance import code_hash
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind

ADALORA = {"adalora": "default", "adalora-loftq": "loftq"}
# AdaLoRA starts with a multiple of its final rank, as in 12 → 4 and in the authors' scripts.
_HEADROOM = 1.5


@dataclass(frozen=True)
class PlannerStudy:
    """``arms`` at each of ``budgets``, compared with ``reference``.

    ``configs`` are trained in addition, at their own bytes. A search may evaluate ``evaluations`` plans of
    ``tries`` steps each. ``settings`` by kind of task shorten the runs.
    """

    about: str
    reference: str
    arms: tuple[str, ...]
    budgets: tuple[str, ...] = ("=B-Q4", "3.25bits", "2.5bits")
    configs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluations: int = 48
    tries: int = 10
    settings: tuple[tuple[str, int], ...] = ()


_ALLOCATORS = (
    "exact",
    "bits-only",
    "rank-only",
    "uniform",
    "hand-made",
    "greedy",
    "nsga2",
    "bayes",
    "random",
    "adalora",
    "adalora-loftq",
)

# A planned arm would repeat an arm of the study.
_RULE_CONFIGS = tuple(name for name in DEFAULT_CONFIGS if isinstance(CONFIGS[name], Config))

STUDIES: dict[str, PlannerStudy] = {
    "allocators": PlannerStudy(
        "who chooses best at equal bytes, search cost counted", "exact", _ALLOCATORS, configs=_RULE_CONFIGS
    ),
    "frozen-rank": PlannerStudy(
        "frozen non-uniform ranks against adaptive ones",
        "adalora",
        ("adalora", "two_stage", "gradient_probe", "uniform"),
        ("=B-Q4",),
    ),
    "eight-bits": PlannerStudy(
        "which matrices get 8 bits",
        "exact",
        ("exact", "edges_high", "attention_high_ffn_low", "ffn_high_attention_low"),
        ("7bits",),
    ),
    "three-bits": PlannerStudy(
        "3 bits on the less critical half",
        "exact",
        ("exact", "three_bits_on_least_sensitive", "uniform"),
        ("4.5bits",),
    ),
}
# A third of the steps, one seed, one budget, one window of each article for validation and test. The configs
# are those with fixed ranks: adaptive ranks do not converge in so few steps.
QUICK: dict[str, Any] = {
    "budgets": ("3.25bits",),
    "seeds": (0,),
    "evaluations": 6,
    "tries": 3,
    "configs": ("B-FP", "B-Q4", "Joint-3"),
}


def find_study(name: str, quick: bool) -> PlannerStudy:
    """Return the study called ``name``; ``quick`` reduces it.

    Raises :class:`~bitrank.errors.UserError` with the known names if there is no such study.
    """
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    study = STUDIES[name]
    if not quick:
        return study
    kept = {"budgets": len(study.budgets) == 1, "configs": not study.configs}
    return replace(study, **{key: value for key, value in QUICK.items() if not kept.get(key)})


def profile_of(name: str, profile: Profile, quick: bool) -> Profile:
    """Return ``profile`` with the experiment name of the study, and with shorter runs if ``quick``."""
    if not quick:
        return replace(profile, name=name)
    by_kind = {kind: _shorter(kind, fields) for kind, fields in profile.by_kind.items()}
    by_task = {task: _one_window(fields) for task, fields in profile.by_task.items()}
    return replace(profile, name=f"{name}-quick", by_kind=by_kind, by_task=by_task)


def _shorter(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return a profile's fields with fewer steps and a single validation at the end."""
    quick = task_kind(kind).quick_steps
    steps = min(quick, options.get("steps") or quick)
    return {**options, "epochs": None, "steps": steps, "eval_every": steps}


def _one_window(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a task's fields limited to the first window of each text, if the task counts windows."""
    return {**fields, **dict.fromkeys(fields.keys() & {"test_windows", "validation_windows"}, 1)}


def study_specs(
    study: PlannerStudy,
    profile: Profile,
    tasks: Sequence[str],
    overrides: dict[str, Any],
    folder: Path,
    jobs: int,
    on_progress: Any = print,
) -> list[RunSpec]:
    """Return every run of ``study``, after making its plans or reading them from ``folder``.

    ``jobs`` plans are made at the same time. Plans that fail are reported to ``on_progress`` with the reason.
    """
    measured = {task: make_spec(profile, "B-FP", task, overrides) for task in tasks}
    request = [(arm, budget, task) for task in tasks for budget in study.budgets for arm in study.arms]
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin) as pool:
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
    result = []
    for arm, budget, task in request:
        path = paths[arm, budget, task]
        on_progress(f"{arm} at {budget} for {task}: {path}")
        if isinstance(path, Path):
            result.append(make_spec(profile, "", task, {**overrides, "plan": str(path)}))
    result += [make_spec(profile, config, task, overrides) for task in tasks for config in study.configs]
    return [replace(spec, seed=seed) for seed in study.seeds for spec in result]


def _longest_first(
    request: Sequence[tuple[str, str, str]], kinds: dict[str, str]
) -> list[tuple[str, str, str]]:
    """Return the cells in planning order, the longest first, so that no search runs alone at the end.

    Searches come before other planners, and kinds of tasks with long steps (few steps in a quick study)
    before others.
    """
    return sorted(request, key=lambda cell: (cell[0] not in SEARCHES, task_kind(kinds[cell[2]]).quick_steps))


def _begin() -> None:
    exit_with_parent()
    quiet_libraries()


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
    path = folder / task / f"{arm}-{budget.lstrip('=')}.json"
    spec = make_spec(profile, "B-FP", task, overrides)
    made_for = _made_for(spec, study, arm, budget)
    if path.exists() and read_plan(path).get("made_for") == made_for:
        return path
    planner = "uniform" if arm in ADALORA else arm
    try:
        result = make_plan(
            spec, PlanRequest(budget, planner, evaluations=study.evaluations, steps=study.tries)
        )
    except ValueError as error:
        return f"no plan: {error}"
    init = ADALORA.get(arm, "lq-lora")
    data = plan_data(result.plan, result.sizes.matrices, result.problem.budget, init, spec.quantizer)
    if arm in ADALORA:
        (rank,) = set(result.plan.ranks.values())
        data |= {
            "planner": arm,
            "adaptive": {"init_r": round(_HEADROOM * rank), "target_r": rank, "shrink": True},
        }
    measuring = 0.0 if planner == "uniform" else result.tables.seconds
    data["planning_seconds"] = {"measuring": measuring, "choosing": result.choosing}
    data["made_for"] = made_for
    path.parent.mkdir(parents=True, exist_ok=True)
    save_plan(data, path)
    return path


def _made_for(spec: RunSpec, study: PlannerStudy, arm: str, budget: str) -> str:
    """Return a hash of everything that a plan depends on.

    A plan for other data, or made by other code, has a different hash and is not reused.
    """
    code = code_hash("bitrank.planning.make_plan")
    parts = (spec.spec_id, arm, budget, str(study.evaluations), str(study.tries), code)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def planning_costs(specs: Sequence[RunSpec]) -> list[dict[str, Any]]:
    """Return the planning time and size of the plans of ``specs``, one row per plan."""
    rows = []
    for spec in {(spec.task, spec.plan): spec for spec in specs if spec.plan}.values():
        data = json.loads(Path(str(spec.plan)).read_text())
        seconds = data["planning_seconds"]
        rows.append(
            {
                "config": spec.config,
                "task": spec.task_name,
                "planned_bytes": data["bytes"],
                "budget": data["budget"],
                "measuring_s": seconds["measuring"],
                "choosing_s": seconds["choosing"],
                "predicted_nats": data["predicted_added_loss"],
            }
        )
    return rows
