"""The part of a spec that the plan of a planned arm depends on, and the place of the plan in the cache.

A plan depends on the request, the model, the task's text and the code that plans. It does not depend on the
seed, and, unless planning trains (a search, or a probe of what rank learns), on no setting of the training.
So runs that differ only there share one plan. This module imports no torch: the command line looks up plans
with it.
"""

from __future__ import annotations

import hashlib
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from bitrank_data import cache_dir

from bitrank.spec.inputs import data_digest, model_digest
from bitrank.spec.learning import LEARNING
from bitrank.spec.plan_file import read_plan
from bitrank.spec.provenance import PLANNING, code_hash
from bitrank.spec.races import RACES
from bitrank.spec.run_spec import RunSpec

PLAN = "plan.json"
# Fields that change no plan. A field that is missing here can only cause a plan to be made again.
_OF_THE_RUN = {
    "seed",
    "profile",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "test_windows",
    "tested",
    "memory_limit",
    "processes",
    "shard",
}
# Fields that change a plan only if planning trains: a search, or a probe of what rank learns.
_OF_TRAINING = {
    "steps",
    "epochs",
    "batch_size",
    "accumulation",
    "learning_rate",
    "warmup",
    "weight_decay",
    "clip",
    "validation_windows",
    "fused",
    "mps_safe",
    "shrink",
}


def planning_spec(spec: RunSpec) -> RunSpec:
    """Return ``spec`` with the defaults of all fields that its plan does not depend on, and known digests.

    The plan is made from this spec alone, so equal planning specs give equal plans.
    """
    from bitrank_planner import SEARCHES

    request = spec.plan_request
    assert request is not None, "only a planned arm has a plan request"
    trains = request["planner"] in (*SEARCHES, *RACES) or LEARNING[request["learning"]].trains
    unused = _OF_THE_RUN if trains else _OF_THE_RUN | _OF_TRAINING
    defaults: dict[str, Any] = {f.name: f.default for f in fields(RunSpec) if f.default is not MISSING}
    kept = {name: defaults[name] for name in unused}
    if "steps" in unused:
        kept["steps"] = 1  # a spec has either steps or epochs
    kept["data_digest"] = spec.data_digest or data_digest(spec.task, spec.data, spec.test_file)
    kept["model_digest"] = spec.model_digest or model_digest(spec.model)
    return replace(spec, config="planned", plan=None, **kept)


def plan_place(spec: RunSpec) -> Path:
    """Return the cache folder for the plan of ``spec``; its name is a hash of everything the plan depends on.

    The hash contains the arm with its request, and, if the budget is the bytes of a config, that config.
    """
    plan_spec = planning_spec(spec)
    rules = frozenset({"GivenBits", "GivenRanks", *_rules_of_budget(spec)})
    key = hashlib.sha256(f"{plan_spec.spec_id}\0{code_hash(PLANNING, rules=rules)}".encode()).hexdigest()[:16]
    return cache_dir() / "plans" / f"{Path(spec.model).name}-{spec.task_name}-{key}"


def cached_plan(spec: RunSpec) -> dict[str, Any] | None:
    """Return the data of the plan of ``spec``; None if the cache has none, so that planning precedes the
    run."""
    path = plan_place(spec) / PLAN
    return read_plan(path) if path.is_file() else None


def _rules_of_budget(spec: RunSpec) -> set[str]:
    source = spec.arm.get("budget_config") or {}
    return {str(rule["rule"]) for rule in source.values()}
