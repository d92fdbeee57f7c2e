"""Where the plan of an arm of a study is saved, and a hash of everything that the plan depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitrank.planning.planner_studies import PlannerStudy
from bitrank.planning.study_arms import STUDY_ARMS
from bitrank.spec.configs import CONFIGS, Config
from bitrank.spec.provenance import code_hash
from bitrank.spec.run_spec import RunSpec

_CODE = ("bitrank.planning.make_plan", "bitrank.planning.equal_bytes", "bitrank.planning.study_plans")
_PATH_DIGITS = 8


def plan_path(folder: Path, spec: RunSpec, arm: str, budget: str) -> Path:
    """Return the path of the plan of ``arm`` for the task of ``spec``, always inside of ``folder``.

    A file or folder of the user's is a folder here named after it and its path, since two files may share a
    name.
    """
    place = spec.task_name
    if place != spec.task or Path(place).name != place:
        digest = hashlib.sha256(str(Path(spec.task).resolve()).encode()).hexdigest()[:_PATH_DIGITS]
        place = f"{Path(place).name}-{digest}"
    return folder / place / f"{arm}-{budget.lstrip('=')}.json"


def plan_dependencies(
    spec: RunSpec, study: PlannerStudy, arm: str, budget: str, overrides: Mapping[str, Any]
) -> str:
    """Return a hash of everything that the plan of ``arm`` depends on.

    A plan for other data or settings, or made by other code or rules, has a different hash and is not reused.
    """
    config, counted, entry = CONFIGS.get(arm), CONFIGS.get(budget.lstrip("=")), STUDY_ARMS.get(arm)
    rules = [config, counted]
    names = {
        type(rule).__name__ for one in rules if isinstance(one, Config) for rule in (one.precision, one.rank)
    }
    parts = {
        "spec": spec.spec_id,
        "arm": arm,
        "budget": budget,
        "searches": [study.evaluations, study.tries],
        "code": code_hash(*_CODE, rules=frozenset(names)),
        "config": None if config is None else config.as_data(),
        "budget_of": None if counted is None else counted.as_data(),
        "settings": dict(config.settings) if isinstance(config, Config) else {},
        "entry": None if entry is None else asdict(entry),
        "overrides": dict(overrides),
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
