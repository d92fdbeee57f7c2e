"""Plan for the run of a planned arm: ``python -m bitrank.planning FOLDER``, where FOLDER contains
``spec.json``.

Writes ``requested_plan.json`` to the folder, from the cache if the plan exists. Progress is appended to
``events.jsonl``. Exit codes are those of ``python -m bitrank.run``. Without FOLDER the specs of queued runs
are read from standard input and their plans are made in the cache; errors are ignored there, because the run
that needs the plan reports them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from bitrank.process.events import open_events
from bitrank.process.failure import write_failure
from bitrank.process.fast_imports import quick_imports, quiet_libraries
from bitrank.process.lifetime import exit_with_parent
from bitrank.process.run_folder import REQUESTED_PLAN, seal_requested_plan

_EVERY = 1.0  # seconds between two progress events, of which there may be one for every matrix


class _Terminated(BaseException):
    """SIGTERM: end after unfinished files are removed from the cache."""


def main(folder: Path | None) -> int:
    """Make the plan of the run in ``folder``, or those of the specs on standard input; returns the exit
    code."""
    exit_with_parent()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if folder is None:
            return _plan_ahead()
        return _plan_for_run(folder)
    except _Terminated:
        # End by the signal itself: the process that follows the run records how it ended.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        return 128 + signal.SIGTERM


def _terminate(number: int, frame: Any) -> None:
    raise _Terminated


def _plan_for_run(folder: Path) -> int:
    failure = folder / "failure.json"
    failure.unlink(missing_ok=True)
    try:
        with open_events(folder / "events.jsonl") as events:
            _write_plan(folder, events)
    except Exception as error:  # noqa: BLE001 - every failure is recorded and sets the exit code
        return write_failure(failure, error)
    return 0


def _write_plan(folder: Path, events: TextIO) -> None:
    _emit(events, {"event": "phase", "phase": "planning"})
    quiet_libraries()
    with quick_imports():
        from bitrank.planning.planned_arms import plan_for
        from bitrank.run.notices import notice
        from bitrank.spec.inputs import check_inputs, check_plan
        from bitrank.spec.plan_file import save_plan
        from bitrank.spec.run_spec import read_spec

    spec = read_spec(folder / "spec.json")
    check_plan(spec)
    check_inputs(spec)
    shown = 0.0

    def on_progress(step: str) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _EVERY:
            shown = time.monotonic()
            text = step if ":" in step else f"measuring {step}"
            _emit(events, {"event": "phase", "phase": f"planning: {text}"})

    plan, is_new = plan_for(spec, on_progress)
    save_plan(plan, folder / REQUESTED_PLAN)
    seal_requested_plan(folder)
    seconds = sum(plan["planning_seconds"].values())
    limit = spec.memory_limit and spec.memory_limit / 2**20
    if is_new and limit and plan["planning_peak_mib"] > limit:
        text = (
            f"planning took {plan['planning_peak_mib']:,.0f} MiB: the memory limit of {limit:,.0f} MiB "
            "holds for the training process alone"
        )
        _emit(events, notice("planning_memory", text))
    source = "made before this run" if is_new else "from the cache; planning time is that of when it was made"
    tags = {"plan_source": f"{plan['planner']} plan in {seconds:.1f} s, {source}"}
    _emit(events, {"event": "planned", "phase": "planned", "tags": tags})


def _emit(events: TextIO, event: dict[str, Any]) -> None:
    """Append ``event`` without the memory of this process, which is not the run's."""
    events.write(json.dumps({**event, "time_ms": int(time.time() * 1000)}) + "\n")
    events.flush()


def _plan_ahead() -> int:
    from bitrank.spec.run_spec import RunSpec

    specs = [RunSpec(**fields) for fields in json.load(sys.stdin)]
    quiet_libraries()
    with quick_imports():
        from bitrank.planning.planned_arms import plan_for
    for spec in specs:
        with contextlib.suppress(Exception):
            plan_for(spec)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
