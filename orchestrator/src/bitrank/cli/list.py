"""``bitrank list``: every run of the matrix, its state, and its estimated cost; with ``--arms`` every arm."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from bitrank.cli.arguments import location
from bitrank.cli.options import add_command, add_selection, add_settings, chosen_specs
from bitrank.errors import UserError
from bitrank.spec.run_spec import RunSpec

if TYPE_CHECKING:
    from rich.table import Table

    from bitrank.tracking.run_state import State

LIST = """examples:
  bitrank list
  bitrank list --profile paper --json
  bitrank list --arms"""


def rows(specs: Sequence[RunSpec], store: str) -> list[dict[str, Any]]:
    """One row of plain data per spec.

    ``seconds`` is the duration of the run, or the median of the complete runs of its task; None if unknown.
    ``planning_seconds`` is the time in which the plan of a planned arm was made: 0 for other arms, None if
    the plan does not exist yet, because its time cannot be known before.
    """
    states = _states(specs, store)
    durations = [
        (spec.task, state.figures["time/total_s"])
        for spec, state in zip(specs, states, strict=True)
        if state.figures
    ]
    listed = []
    for spec, state in zip(specs, states, strict=True):
        same_task = [seconds for task, seconds in durations if task == spec.task]
        seconds = state.figures.get("time/total_s") or (median(same_task) if same_task else None)
        planning = state.figures.get("time/plan_s", _planning_seconds(spec))
        length = f"{spec.steps} steps" if spec.steps else f"{spec.epochs} epochs"
        listed.append(
            {
                "run": spec.run_name,
                "spec_id": spec.spec_id,
                "state": state.name,
                "model": spec.model,
                "training": f"{length} of {spec.batch_size}",
                "seconds": seconds,
                "planning_seconds": planning,
                "note": state.note or ("" if planning is not None else _NO_PLAN),
            }
        )
    return listed


def arm_rows() -> list[dict[str, str]]:
    """One row of plain data per arm: configs, then the arms that only studies have.

    The source of an arm of this project is empty.
    """
    from bitrank.planning.study_arms import STUDY_ARMS, SYSTEM_ARMS
    from bitrank.spec.configs import CONFIGS

    configs = [
        {"arm": name, "family": arm.family, "about": arm.about, "source": arm.source}
        for name, arm in CONFIGS.items()
    ]
    of_studies = [
        {"arm": name, "family": "study", "about": STUDY_ARMS[name].about, "source": STUDY_ARMS[name].source}
        for name in SYSTEM_ARMS
        if name not in CONFIGS
    ]
    return configs + of_studies


def arm_table(listed: Sequence[dict[str, str]]) -> Table:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("arm", "about", "source"):
        shown.add_column(head, no_wrap=head == "arm")
    for row in listed:
        shown.add_row(row["arm"], row["about"], row["source"] or "this project")
    return shown


_NO_PLAN = "its plan does not exist yet; it is made before training, in a time that is not known"


def _planning_seconds(spec: RunSpec) -> float | None:
    """Seconds in which the plan of a planned arm was made; None if it is not in the cache."""
    if spec.plan_request is None:
        return 0.0
    from bitrank.spec.plan_request import cached_plan

    plan = cached_plan(spec)
    return None if plan is None else float(sum(plan["planning_seconds"].values()))


def table(listed: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("run", "spec_id", "state", "model", "training", "time"):
        shown.add_column(head, no_wrap=True)
    for row in listed:
        time = f"{row['seconds']:.0f} s" if row["seconds"] else "unknown"
        if row["planning_seconds"] is None:
            time += ", planning unknown"
        elif row["planning_seconds"]:
            time += f", planning {row['planning_seconds']:.0f} s"
        shown.add_row(row["run"], row["spec_id"], row["state"], row["model"], row["training"], time)
    return shown


def _states(specs: Sequence[RunSpec], store: str) -> list[State]:
    from bitrank.process.run_folder import is_locked
    from bitrank.tracking.lease import held_specs
    from bitrank.tracking.run_state import read_runs, state_of
    from bitrank.tracking.sqlite_store import has_store
    from bitrank.tracking.store import Store

    database, profile = Store.parse(store).database, specs[0].profile
    if database is None:
        from bitrank.tracking.mlflow_tracker import Tracker
        from bitrank.tracking.store import open_store

        tracker = Tracker(open_store(store), store, profile)
        runs, locked = tracker.runs(), held_specs(tracker.client, tracker.experiment_id)
        return [_running(state_of(spec, runs), spec.spec_id in locked) for spec in specs]
    if database.parent.exists() and not database.parent.is_dir():
        raise UserError(f"cannot read the store {store}: it is a file; expected a folder or an MLflow URI")
    runs = read_runs(database, f"bitrank-{profile}") if has_store(database) else {}
    work = Store.parse(store).work
    return [_running(state_of(spec, runs), is_locked(work / spec.spec_id)) for spec in specs]


def _running(state: State, locked: bool) -> State:
    """``state``, or running if a process has locked the run.

    The store alone does not distinguish a running process from an interrupted one.
    """
    from bitrank.tracking.lease import HELD_ELSEWHERE
    from bitrank.tracking.run_state import State

    if locked and state.name not in {"done", "stale"}:
        return State("running", state.run_id, HELD_ELSEWHERE)
    return state


def add_list(commands: Any) -> None:
    parser = add_command(
        commands, "list", "every run of the matrix with its id, state and estimated time", LIST, _list
    )
    add_selection(parser)
    parser.add_argument("--store", type=location, default="runs", help="folder or MLflow URI (default: runs)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--arms",
        action="store_true",
        help="list configs (values of --configs) and arms of `bitrank study systems`, with their sources",
    )
    add_settings(parser)


def _list(arguments: argparse.Namespace) -> int:
    from bitrank.terminal import console

    if arguments.arms:
        arms = arm_rows()
        shown, data = arm_table(arms), json.dumps(arms, indent=1, ensure_ascii=False)
    else:
        runs = rows(chosen_specs(arguments), arguments.store)
        shown, data = table(runs), json.dumps(runs, indent=1)
    if arguments.json:
        print(data)
    else:
        console().print(shown, markup=False)  # names may have brackets
    return 0
