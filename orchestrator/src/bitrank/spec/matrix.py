"""The study matrix as a list of specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bitrank_data import HUB_TASKS

from bitrank.errors import UserError
from bitrank.spec.make_spec import check, check_data, make_spec
from bitrank.spec.profiles import Profile
from bitrank.spec.run_spec import RunSpec


def matrix(
    profile: Profile, configs: list[str], tasks: list[str], seeds: list[int], overrides: Mapping[str, Any]
) -> list[RunSpec]:
    """Return the specs of all runs of the study, ordered by task, seed and config, without duplicates.

    ``data`` applies only to tasks that read it. Raises :class:`UserError` as :func:`make_spec` does, if no
    task reads ``data``, and if there is no config, task or seed.
    """
    for name, values in (("config", configs), ("task", tasks), ("seed", seeds)):
        if not values:
            raise UserError(f"expected at least one {name}, got none")
    check_data(overrides.get("data"), tasks)
    made: dict[tuple[str, str], RunSpec] = {}
    for task in tasks:
        reads = task in HUB_TASKS
        given = {key: value for key, value in overrides.items() if key != "data" or reads}
        for config in configs:
            made[task, config] = make_spec(profile, config, task, given)
    _check_names(list({spec.task: spec for spec in made.values()}.values()))
    specs = [
        check(replace(made[task, config], seed=seed))
        for task in tasks
        for seed in seeds
        for config in configs
    ]
    return list({spec.spec_id: spec for spec in specs}.values())


def _check_names(specs: Sequence[RunSpec]) -> None:
    """Raise :class:`UserError` if two files have one name as tasks: no report could tell them apart."""
    known: dict[str, str] = {}
    for spec in specs:
        other = known.setdefault(spec.task_name, spec.task)
        if other != spec.task:
            raise UserError(
                f"{other} and {spec.task} are both called {spec.task_name} in tables and reports; rename one"
            )
