"""One run on a machine of a cluster: the same process as in the local executor, in a temporary folder.

The worker is the only writer of the run's record, and owns its lease. It needs no shared disk: each
checkpoint is stored with the run's artifacts, and the next worker continues from there under the same MLflow
run if this one is lost. Driver and worker exchange only plain data.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitrank import __version__
from bitrank.errors import UserError, is_user_error
from bitrank.execution.attempt import Attempt, Job
from bitrank.execution.claim import COMPLETE, is_replaced
from bitrank.execution.interrupts import Interrupted, Signals
from bitrank.process.run_folder import result_of
from bitrank.spec.configs import find_arm
from bitrank.spec.provenance import shared_code
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.lease import Lease, RunHeldElsewhere
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.remote_checkpoints import Snapshots
from bitrank.tracking.run_state import State, code_of, state_of
from bitrank.tracking.store import open_store

_POLL = 0.2  # seconds
_TRIES = "7"  # for each request to the server, which may restart during a run


class LeftCluster(Exception):
    """This machine is no longer part of its cluster."""


def order_for(spec: RunSpec, store: str, cpus: int, replaces: State | None = None) -> dict[str, Any]:
    """The order for a worker: spec, store, number of cores, and the required code and files."""
    return {
        "version": __version__,
        "shared_code": shared_code(),
        "code": code_of(spec),
        "spec": asdict(spec),
        "store": store,
        "cwd": str(Path.cwd()),
        "files": _files_of(spec),
        "cpus": cpus,
        # The stored run to replace, if its state has not changed.
        "replaces": replaces and [replaces.name, replaces.run_id],
        "gone": None,  # from the second attempt on: the lease of a worker that has ended
        "patience": 0.0,  # seconds to wait until a worker that may be alive releases the lease
    }


def work(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Execute one run; yields messages for the driver: ``started``, then ``events``, and last ``ended``.

    When interrupted it closes the run as KILLED and yields no ``ended``. Raises errors of this machine, such
    as an unreachable store.
    """
    try:
        yield from _work(order)
    except RunHeldElsewhere as error:
        yield {"ended": "locked", "message": str(error)}
    except Interrupted:
        return
    except ValueError as error:
        if not is_user_error(error):
            raise
        yield {"ended": "bad input", "message": f"on {socket.gethostname()}: {error}"}


def _work(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = _checked(order)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = _TRIES
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    # Applies to a spec without a number of threads.
    os.environ["OMP_NUM_THREADS"] = str(max(1, order["cpus"] // spec.processes))
    tracker = Tracker(open_store(order["store"]), order["store"], spec.profile)
    with (
        Signals() as stop,
        Lease(tracker.client, tracker.experiment_id, spec.spec_id, order["gone"], order["patience"]) as lease,
        tempfile.TemporaryDirectory(prefix="bitrank-", ignore_cleanup_errors=True) as scratch,
    ):
        end = yield from _run(order, spec, tracker, Path(scratch), lease, stop)
    yield end  # after the lease is released: a driver that then exits leaves no lease


def _run(
    order: dict[str, Any], spec: RunSpec, tracker: Tracker, folder: Path, lease: Lease, stop: Signals
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    stored = tracker.find(spec.spec_id)
    state = state_of(spec, {spec.spec_id: stored} if stored else {})
    if is_replaced(state, State(*order["replaces"]) if order["replaces"] else None):
        assert state.run_id is not None
        tracker.forget(state.run_id)
        stored, state = None, State("new")
    # A worker that was lost later, or another driver's worker, may have ended the run.
    if stored and state.name in {*COMPLETE, "diverged"}:
        Snapshots(tracker.client, stored.run_id, folder).drop()
        return {
            "ended": "diverged" if state.name == "diverged" else "finished",
            "message": state.note if state.name == "diverged" else "",
            "run_id": state.run_id,
            "figures": dict(state.figures),
        }
    log = tracker.open(spec, state.run_id)
    job, snapshots = Job(spec, folder, state), Snapshots(tracker.client, log.run_id, folder)
    if (name := snapshots.restore()) is not None:
        tracker.client.set_tag(log.run_id, "resumed_from", name)
    yield from _follow(Attempt(job, log), log.run_id, snapshots, lease, stop)
    if job.status in {"finished", "diverged"}:
        snapshots.drop()
    return {
        "ended": job.status,
        "message": job.message,
        "run_id": log.run_id,
        "figures": result_of(job.folder) or {},
    }


def _follow(
    attempt: Attempt, run_id: str, snapshots: Snapshots, lease: Lease, stop: Signals
) -> Iterator[dict[str, Any]]:
    """Yield the run's events until its record is closed, and store its checkpoints."""
    parent = os.getppid()
    try:
        yield {"started": socket.gethostname(), "run_id": run_id, "lease": lease.holder}
        while not attempt.ended:
            time.sleep(_POLL)
            stop.check()
            lease.check()
            # Ray does not end a task when its machine leaves the cluster; another worker continues the run.
            if os.getppid() != parent:
                raise LeftCluster("Ray has ended on its machine")
            new_events = attempt.follow()
            if any(event["event"] == "checkpoint" for event in new_events) and (name := snapshots.take()):
                # The points before a checkpoint must be stored before the checkpoint.
                new_events += attempt.follow(at_once=True)
                snapshots.store(name)
            if new_events:
                yield {"events": new_events}
    except (Interrupted, GeneratorExit):
        attempt.kill()
        raise
    except BaseException:
        attempt.stop()
        raise
    attempt.close()


def _checked(order: dict[str, Any]) -> RunSpec:
    """Return the order's spec and change to the folder of its relative paths.

    Raises :class:`UserError` if the code of this machine differs from the driver's, or a file is missing.
    """
    here, there = (__version__, shared_code()), (order["version"], order["shared_code"])
    if here != there:
        raise UserError(
            f"bitrank {here[0]} with code {here[1][:12]} is installed here, and {there[0]} with code "
            f"{there[1][:12]} on the driver; install the same checkout on every machine"
        )
    spec, cwd = RunSpec(**order["spec"]), Path(order["cwd"])
    if missing := [cwd / path for path in order["files"] if not (cwd / path).exists()]:
        raise UserError(
            f"{missing[0]} does not exist; files and folders that a run reads must have the same path on "
            "every machine (a shared folder, or copies)"
        )
    os.chdir(cwd if order["files"] else tempfile.gettempdir())
    same_arm = find_arm(spec.config, spec.plan, spec.tuned).as_data() == spec.arm
    if not same_arm or code_of(spec) != order["code"]:
        raise UserError(f"{spec.plan or 'rules.py'} differs from the driver's; copy it again")
    return spec


def _files_of(spec: RunSpec) -> list[str]:
    """The user's own files that the run reads: plan, task file, data folder, model folder."""
    task = spec.task if spec.task_name != spec.task else None
    paths = (spec.plan, task, spec.test_file, spec.data, spec.model)
    return [path for path in paths if path and Path(path).exists()]
