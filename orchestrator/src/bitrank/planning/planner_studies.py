"""Studies of planners: plans of several makers at equal bytes, trained alike, so that only the choice of bits and rank differs.

A study is a line in :data:`STUDIES`. An arm is a planner (see :mod:`~bitrank.planning.make_plan`), ``adalora`` or ``adalora-loftq``: the
uniform plan's formats with AdaLoRA moving rank around the uniform plan's, pruned ranks removed, so that it ends at the same bytes. Plans
lie as JSON under the results, with what they cost to make; one that is there already, for the same data,
model, settings and code, is not made again.
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
from bitrank.spec.configs import CONFIGS
from bitrank.spec.plan_file import plan_data, read_plan, save_plan
from bitrank.spec.profiles import Profile
from bitrank.spec.run_spec import RunSpec, make_spec
from bitrank.tracking.provenance import code_hash

ADALORA = {"adalora": "default", "adalora-loftq": "loftq"}
_HEADROOM = (
    1.5  # AdaLoRA starts with so many times the rank that it ends with, as 12 → 4 and the authors' scripts do
)


@dataclass(frozen=True)
class PlannerStudy:
    """``arms`` at each of ``budgets``, compared with ``reference``; ``configs`` are trained beside them, at their own bytes.

    ``evaluations`` plans of ``tries`` steps are what a search may look at; ``settings`` by kind of task shorten the runs.
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
    "exact", "bits-only", "rank-only", "uniform", "greedy", "nsga2", "bayes", "random", "adalora", "adalora-loftq",
)  # fmt: skip

STUDIES: dict[str, PlannerStudy] = {
    "allocators": PlannerStudy(
        "who chooses best at equal bytes, search cost counted", "exact", _ALLOCATORS, configs=tuple(CONFIGS)
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
# A third of the steps, one seed, one budget, one window of each article to validate and test on. Of the configs those with fixed ranks:
# the adaptive ones have no time to learn in so few steps.
QUICK: dict[str, Any] = {
    "budgets": ("3.25bits",), "seeds": (0,), "evaluations": 6, "tries": 3, "configs": ("B-FP", "B-Q4", "Joint-3"),
}  # fmt: skip
_QUICK_STEPS = {"classification": 100, "language-modelling": 10}


def find_study(name: str, quick: bool) -> PlannerStudy:
    """The study called ``name``; ``quick`` makes it small. Raises :class:`~bitrank.errors.UserError` with the names there are."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    study = STUDIES[name]
    if not quick:
        return study
    kept = {"budgets": len(study.budgets) == 1, "configs": not study.configs}
    return replace(study, **{key: value for key, value in QUICK.items() if not kept.get(key)})


def profile_of(name: str, profile: Profile, quick: bool) -> Profile:
    """``profile`` as the study called ``name`` runs it: in an experiment of its own, and with shorter runs when it is ``quick``."""
    if not quick:
        return replace(profile, name=name)
    by_kind = {kind: _shorter(kind, fields) for kind, fields in profile.by_kind.items()}
    by_task = {task: _one_window(fields) for task, fields in profile.by_task.items()}
    return replace(profile, name=f"{name}-quick", by_kind=by_kind, by_task=by_task)


def _shorter(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """A profile's fields with fewer steps, validated at the end alone."""
    steps = min(_QUICK_STEPS[kind], options.get("steps") or _QUICK_STEPS[kind])
    return {**options, "epochs": None, "steps": steps, "eval_every": steps}


def _one_window(fields: dict[str, Any]) -> dict[str, Any]:
    """A task's fields with the first window of each text alone, where windows are counted."""
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
    """Every run of ``study``: plans are made (or found in ``folder``) first, ``jobs`` at a time. Plans that cannot be made are told."""
    measured = {task: make_spec(profile, "B-FP", task, overrides) for task in tasks}
    request = [(arm, budget, task) for task in tasks for budget in study.budgets for arm in study.arms]
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin) as pool:
        for spec in measured.values():  # once, before everybody wants it
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
    """The order to plan in, so that no search is left alone at the end: searches first, and a language model's before a classifier's."""
    return sorted(request, key=lambda cell: (cell[0] not in SEARCHES, kinds[cell[2]] != "language-modelling"))


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
    """The path of the arm's plan; the reason when none can be made."""
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
    data = plan_data(result.plan, result.sizes.matrices, result.problem.budget, ADALORA.get(arm, "lq-lora"))
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
    """A hash of all that a plan depends on: one for edited data, or by other code, is not this arm's plan."""
    code = code_hash("bitrank.planning.make_plan")
    parts = (spec.spec_id, arm, budget, str(study.evaluations), str(study.tries), code)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def planning_costs(specs: Sequence[RunSpec]) -> list[dict[str, Any]]:
    """What the plans behind ``specs`` cost to make and how large they are: one row a plan."""
    rows = []
    for spec in {(spec.task, spec.plan): spec for spec in specs if spec.plan}.values():
        data = json.loads(Path(str(spec.plan)).read_text())
        seconds = data["planning_seconds"]
        rows.append({
            "config": spec.config, "task": spec.task_name, "planned_bytes": data["bytes"], "budget": data["budget"],
            "measuring_s": seconds["measuring"], "choosing_s": seconds["choosing"], "predicted_nats": data["predicted_added_loss"],
        })  # fmt: skip
    return rows
