"""One run on a machine of a cluster: the same process as on the driver's own machine, in a scratch folder,
followed and logged here.

The worker that runs a run is the one writer of its record, and holds its lease. It needs no shared disk: each
checkpoint is stored with the run's artifacts, and the worker that comes after a lost one goes on from there,
under the same MLflow run. What crosses from the driver and back is plain data.
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
from bitrank.execution.claim import is_replaced
from bitrank.execution.interrupts import Interrupted, Signals
from bitrank.process.run_folder import result_of
from bitrank.spec.configs import find_config
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.lease import Lease, RunHeldElsewhere
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.provenance import shared_code
from bitrank.tracking.remote_checkpoints import Snapshots
from bitrank.tracking.run_state import State, code_of, state_of
from bitrank.tracking.store import open_store

_POLL = 0.2  # seconds
_TRIES = "7"  # of each call to the server, which may be started anew while runs go on


class LeftCluster(Exception):
    """This machine is no part of its cluster any more."""


def order_for(spec: RunSpec, store: str, cpus: int, replaces: State | None = None) -> dict[str, Any]:
    """What a worker is told: the spec, where its record goes, how many cores it has, and which code and files
    it must find there.
    """
    return {
        "version": __version__,
        "shared_code": shared_code(),
        "code": code_of(spec),
        "spec": asdict(spec),
        "store": store,
        "cwd": str(Path.cwd()),
        "files": _files_of(spec),
        "cpus": cpus,
        "replaces": replaces
        and [replaces.name, replaces.run_id],  # the run to forget, if it is still as it was
        "gone": None,  # the lease of a worker that is dead, from the second attempt on
        "patience": 0.0,  # seconds that a worker which may still live is given to let go
    }


def work(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Do one run; yields what the driver is to know: ``started``, then ``events``, and ``ended`` last.

    It says nothing of its end when it is interrupted, after closing the run as KILLED. Raises what breaks
    here, such as a store that is gone.
    """
    try:
        yield from _work(order)
    except RunHeldElsewhere as error:
        yield {"ended": "elsewhere", "message": str(error)}
    except Interrupted:
        return
    except ValueError as error:
        if not is_user_error(error):
            raise
        yield {"ended": "bad input", "message": f"on {socket.gethostname()}: {error}"}


def _work(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = _checked(order)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = (
        _TRIES,
        "false",
    )
    os.environ["OMP_NUM_THREADS"] = str(
        max(1, order["cpus"] // spec.processes)
    )  # for a spec that does not say how many
    tracker = Tracker(open_store(order["store"]), order["store"], spec.profile)
    with (
        Signals() as stop,
        Lease(tracker.client, tracker.experiment_id, spec.spec_id, order["gone"], order["patience"]) as lease,
        tempfile.TemporaryDirectory(prefix="bitrank-", ignore_cleanup_errors=True) as scratch,
    ):
        end = yield from _run(order, spec, tracker, Path(scratch), lease, stop)
    yield end  # when the lease is given back, so that a driver that leaves then leaves nothing behind


def _run(
    order: dict[str, Any], spec: RunSpec, tracker: Tracker, folder: Path, lease: Lease, stop: Signals
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    stored = tracker.find(spec.spec_id)
    state = state_of(spec, {spec.spec_id: stored} if stored else {})
    if is_replaced(state, State(*order["replaces"]) if order["replaces"] else None):
        assert state.run_id is not None
        tracker.forget(state.run_id)
        stored, state = None, State("new")
    if stored and state.name in {"done", "stale"}:  # by a worker that was lost then, or for another driver
        Snapshots(tracker.client, stored.run_id, folder).drop()
        return {"ended": "finished", "message": "", "run_id": state.run_id, "figures": dict(state.figures)}
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
    """Hand on what the run says until its record is closed, and store its checkpoints on the way."""
    parent = os.getppid()
    try:
        yield {"started": socket.gethostname(), "run_id": run_id, "lease": lease.holder}
        while not attempt.ended:
            time.sleep(_POLL)
            stop.check()
            lease.check()
            if (
                os.getppid() != parent
            ):  # Ray lets a task go on when its machine has left the cluster; another continues the run then
                raise LeftCluster("Ray has ended on its machine")
            new_events = attempt.follow()
            if any(event["event"] == "checkpoint" for event in new_events) and (name := snapshots.take()):
                new_events += attempt.follow(
                    at_once=True
                )  # no point before a checkpoint may be missing once the checkpoint is there
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
    """The order's spec, with this process where its paths lead from. Raises :class:`UserError` when this
    machine has other code than the driver, or lacks a file that the run reads."""
    here, there = (__version__, shared_code()), (order["version"], order["shared_code"])
    if here != there:
        raise UserError(
            f"bitrank {here[0]} with code {here[1][:12]} is installed here, and {there[0]} with code {there[1][:12]} on the driver; "
            "install the same checkout on every machine"
        )
    spec, cwd = RunSpec(**order["spec"]), Path(order["cwd"])
    if missing := [cwd / path for path in order["files"] if not (cwd / path).exists()]:
        raise UserError(
            f"{missing[0]} is not there; files and folders that a run reads must lie at the same path on every machine (a shared folder, "
            "or copies)"
        )
    os.chdir(cwd if order["files"] else tempfile.gettempdir())
    if (
        find_config(spec.config, spec.plan, spec.tuned).as_data() != spec.arm
        or code_of(spec) != order["code"]
    ):
        raise UserError(f"{spec.plan or 'rules.py'} is another than on the driver; copy it again")
    return spec


def _files_of(spec: RunSpec) -> list[str]:
    """Paths of the user's own that the run reads: a plan, a task's file, a folder with data, a model's
    folder.
    """
    task = spec.task if spec.task_name != spec.task else None
    return [path for path in (spec.plan, task, spec.data, spec.model) if path and Path(path).exists()]
