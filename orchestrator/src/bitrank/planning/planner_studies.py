"""Studies of planners: plans of several planners at equal bytes are trained in the same way.

The runs differ only in bits and ranks, and in the learning rate if it is chosen for each arm. A study is an
entry of :data:`STUDIES`. An arm is a planner (see :mod:`~bitrank.planning.make_plan`), an entry of
:data:`~bitrank.planning.study_arms.STUDY_ARMS`, or a config, such as that of a published system. Plans are
saved as JSON in the results folder with the
seconds that they took (:mod:`~bitrank.planning.study_plans`). The learning rate of an arm is the one of
:attr:`PlannerStudy.rates` with the least validation loss (:mod:`~bitrank.planning.learning_rates`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bitrank.errors import unknown
from bitrank.planning.study_arms import NULL_ARMS, SYSTEM_ARMS
from bitrank.spec.configs import CONFIGS, DEFAULT_CONFIGS, Config
from bitrank.spec.profiles import Profile
from bitrank.spec.rules import Sixteen
from bitrank.spec.task_kinds import task_kind


@dataclass(frozen=True)
class PlannerStudy:
    """``arms`` at each of ``budgets``, compared with ``reference``.

    ``configs`` are trained in addition, at their own bytes. A search may evaluate ``evaluations`` plans of
    ``tries`` steps each. ``rates`` are factors on the profile's learning rate among which that of each arm is
    chosen; empty for the profile's own. ``walks``: only the rates are tried that a walk downhill from the
    middle one meets (decision 47). ``quick`` replaces values of :data:`QUICK`.
    """

    about: str
    reference: str
    arms: tuple[str, ...]
    budgets: tuple[str, ...] = ("=B-Q4", "3.25bits", "2.5bits")
    configs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluations: int = 48
    tries: int = 10
    rates: tuple[float, ...] = ()
    walks: bool = True
    quick: Mapping[str, Any] = field(default_factory=dict)


_ALLOCATORS = (
    "exact",
    "uniform",
    "hand-made",
    "bits-only",
    "rank-only",
    "greedy",
    "best-search",
    "modelopt-like",
    "adalora-loftq",
)
_HALF_DECADES = (0.1, 10**-0.5, 1.0, 10**0.5, 10.0)

# Without planned arms: each would repeat the arm of the study that has its planner.
_RULE_CONFIGS = tuple(name for name in DEFAULT_CONFIGS if isinstance(CONFIGS[name], Config))

# Arms in 16 bits fit no low budget, so they are compared at their own bytes.
SIXTEEN_BITS = tuple(
    name for name, arm in CONFIGS.items() if isinstance(arm, Config) and isinstance(arm.precision, Sixteen)
)

STUDIES: dict[str, PlannerStudy] = {
    "allocators": PlannerStudy(
        "who chooses best at equal bytes, search cost counted, learning rate of each arm by validation",
        "exact",
        _ALLOCATORS,
        ("=B-Q4", "4.25bits", "3.5bits"),
        configs=_RULE_CONFIGS,
        evaluations=24,
        rates=_HALF_DECADES,
    ),
    "frozen-rank": PlannerStudy(
        "frozen non-uniform ranks against adaptive ones",
        "adalora",
        ("adalora", "train-then-reduce", "two_stage", "gradient_probe", "uniform"),
        ("=B-Q4",),
    ),
    "eight-bits": PlannerStudy(
        "which matrices get 8 bits",
        "exact",
        ("exact", "edges_high", "inner_high", "attention_high_ffn_low", "ffn_high_attention_low"),
        ("7bits",),
    ),
    "three-bits": PlannerStudy(
        "3 bits on the less critical half",
        "exact",
        ("exact", "three_bits_on_least_sensitive", "uniform"),
        ("4.5bits",),
    ),
    "random-plans": PlannerStudy(
        "where the exact plan is among twenty random plans that fit",
        "exact",
        ("exact", *NULL_ARMS),
        ("4.25bits",),
        seeds=(0,),
    ),
    "search-cost": PlannerStudy(
        "whether planning time is better spent on planning, on a race or on longer training",
        "exact",
        ("exact", "race", "uniform", "equal-compute"),
        ("4.25bits",),
    ),
    "systems": PlannerStudy(
        "published systems at equal bytes, all costs counted, learning rate of each arm by validation",
        "Plan-Q4",
        tuple(name for name in SYSTEM_ARMS if name not in SIXTEEN_BITS),
        ("=B-Q4", "3.5bits"),
        configs=SIXTEEN_BITS,
        evaluations=24,
        rates=_HALF_DECADES,
        # The default rate and its neighbours, at the full length of the quick runs: shorter trainings favour
        # high rates, with which single seeds of longer ones collapse.
        quick={
            "budgets": ("=B-Q4",),
            "configs": SIXTEEN_BITS,
            "rates": _HALF_DECADES[1:4],
        },
    ),
}
# A third of the steps, one seed, one budget, one window of each article for validation and test, and the
# profile's learning rate. The configs are those with fixed ranks: adaptive ranks do not converge in so few
# steps.
QUICK: dict[str, Any] = {
    "budgets": ("3.25bits",),
    "seeds": (0,),
    "evaluations": 6,
    "tries": 3,
    "rates": (),
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
    reduced = {key: value for key, value in QUICK.items() if not kept.get(key)}
    return replace(study, **{**reduced, **study.quick})


def profile_of(name: str, profile: Profile, quick: bool) -> Profile:
    """Return ``profile`` with the experiment name of the study, and with shorter runs if ``quick``.

    The experiment of another profile than ``laptop`` has the profile in its name, so that no report mixes
    runs of two profiles.
    """
    if profile.name != "laptop":
        name = f"{name}-{profile.name}"
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
