"""The state of each spec, derived from its run in the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bitrank.errors import UserError
from bitrank.spec.configs import PlannedArm, find_arm
from bitrank.spec.provenance import code_id, planned_code_id
from bitrank.spec.rules import GivenBits, GivenRanks
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.sqlite_store import read_only


@dataclass(frozen=True)
class StoredRun:
    """A run in the store: status, tags, and the last value of every metric."""

    run_id: str
    status: str
    tags: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """The state of a spec in the store.

    ``name`` is one of new, done, stale, interrupted, outdated (interrupted, and the code has changed since),
    failed, diverged, running; ``figures`` are the final metrics of a complete run.
    """

    name: str
    run_id: str | None = None
    note: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def state_of(spec: RunSpec, runs: Mapping[str, StoredRun]) -> State:
    """Derive the state of ``spec`` from the store; only the run's lock shows whether it is running."""
    run = runs.get(spec.spec_id)
    if run is None:
        return State("new")
    older = run.tags.get("code") != code_of(spec)
    if run.status == "FINISHED":
        note = "made by older code; repeat it with --force" if older else ""
        return State("stale" if older else "done", run.run_id, note, run.figures)
    if older:
        return State("outdated", run.run_id)
    if "finding" in run.tags:
        return State("diverged", run.run_id, run.tags["finding"])
    name = "failed" if run.status == "FAILED" else "interrupted"
    return State(name, run.run_id, run.tags.get("failure", ""))


def code_of(spec: RunSpec) -> str:
    """The id of the code that determines the numbers of ``spec``."""
    arm = find_arm(spec.config, spec.plan, spec.tuned)
    if not isinstance(arm, PlannedArm):
        return code_id(arm.precision, arm.rank)
    given, budget = (GivenBits({}), GivenRanks({})), arm.budget_config
    return planned_code_id(*given, *((budget.precision, budget.rank) if budget else ()))


def read_runs(database: Path, experiment: str) -> dict[str, StoredRun]:
    """Read the newest run of each spec_id from a SQLite store, without the slow import of MLflow.

    Raises :class:`UserError` when ``database`` is not an MLflow store.
    """
    try:
        with read_only(database) as store:
            found = {
                run_id: StoredRun(run_id, status, {}, {})
                for run_id, status in store.execute(_RUNS, (experiment,))
            }
            for run_id, key, value in store.execute("SELECT run_uuid, key, value FROM tags"):
                if run_id in found:
                    found[run_id].tags[key] = value  # type: ignore[index]
            for run_id, key, value in store.execute(
                "SELECT run_uuid, key, value FROM latest_metrics WHERE NOT is_nan"
            ):
                if run_id in found:
                    found[run_id].figures[key] = value  # type: ignore[index]
    except sqlite3.DatabaseError as error:
        raise UserError(f"{database} is not an MLflow store: {error}; give another with --store") from error
    return {run.tags["spec_id"]: run for run in found.values() if "spec_id" in run.tags}


_RUNS = """
SELECT run_uuid, status FROM runs JOIN experiments USING (experiment_id)
WHERE experiments.name = ? AND runs.lifecycle_stage = 'active' ORDER BY start_time
"""
