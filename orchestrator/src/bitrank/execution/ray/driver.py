"""The Ray executor: every run is a task on a machine of a cluster with free resources.

The driver submits runs, shows their events, and submits a run again if its worker is lost, up to ``retries``
times. It does not write to a running run: the run's worker does (see :mod:`bitrank.execution.ray.worker`).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlparse

from bitrank.errors import UserError, masked
from bitrank.execution.attempt import Job
from bitrank.execution.claim import update_if_complete
from bitrank.execution.interrupts import Interrupted, Signals
from bitrank.execution.options import Execution
from bitrank.execution.ray.cluster import Cluster, Resources, capacity, needed
from bitrank.execution.ray.worker import order_for
from bitrank.tracking.lease import is_held
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.run_state import State
from bitrank.tracking.store import Store

_POLL = 0.2  # seconds
_CLOSING_SECONDS = 30.0  # time for workers to close their runs after an interrupt
_RELEASE_SECONDS = 180.0  # a machine without connection to its cluster notices after one minute
_SERVER = (
    "start one (mlflow server on Postgres, with --artifacts-destination; docker/compose.yaml has both) "
    "and give --store http://HOST:5000"
)


def check(how: Execution, store: str) -> None:
    """Raise :class:`UserError` if Ray is not installed, or other machines cannot write to ``store``."""
    if find_spec("ray") is None:
        raise UserError(
            f"--executor ray needs Ray; install it with: {sys.executable} -m pip install 'bitrank[ray]'"
        )
    if how.wandb:
        raise UserError(
            "--wandb logs on the machine that trains, and --executor ray trains on other machines; "
            "give one of the two"
        )
    if Store.parse(store).database is not None:
        raise UserError(
            f"--executor ray needs a tracking server as its store, and {masked(store)} is a file that other "
            f"machines cannot write; {_SERVER}"
        )
    if how.ray_address and how.ray_address.startswith("ray://"):
        raise UserError(
            f"{how.ray_address} is an address of Ray Client; run bitrank on a machine of the cluster and "
            "give HOST:PORT, or auto"
        )


@dataclass
class _Task:
    """A submitted run: the order for its worker, and the state from its messages."""

    job: Job
    order: dict[str, Any]
    need: Resources
    handle: Any = None
    host: str = ""
    lease: str | None = None
    over: bool = False
    last_try: bool = False  # another process had locked the run, and every other run has ended
    lost: list[str] = field(default_factory=list)


def run_all(
    jobs: Sequence[Job], tracker: Tracker, how: Execution, changed: Callable[[Job | None], None]
) -> None:
    """Run all jobs on the cluster, at most ``how.jobs`` in parallel.

    Calls ``changed`` with each updated job, and with None at each poll. A failed run does not stop the
    others. Raises :class:`Interrupted` after running jobs are closed as KILLED, and :class:`UserError` if the
    cluster does not answer or is too small for a run, or workers cannot write to the server's artifact store.
    """
    _check_artifacts(tracker)
    cluster = Cluster(how.ray_address)
    try:
        waiting = deque(_tasks(jobs, tracker, cluster))
        # Twice the capacity: half of the runs wait in Ray's queue, so that no machine is idle.
        slots = how.jobs or 2 * max(capacity(task.need, cluster.machines) for task in waiting)
        running, locked = list[_Task](), list[_Task]()
        with Signals() as stop:
            try:
                while waiting or running:
                    while waiting and len(running) < slots:
                        running.append(waiting.popleft())
                        running[-1].handle = cluster.start(running[-1].order, running[-1].need)
                    cluster.wait([task.handle for task in running], _POLL)
                    for task in list(running):
                        again = _handle_messages(task, cluster, tracker, how.retries, changed)
                        if task.over:
                            running.remove(task)
                            if task.job.status == "locked" and not task.last_try:
                                locked.append(_Task(task.job, task.order, task.need, last_try=True))
                            elif task.job.status == "locked":
                                update_if_complete(task.job, tracker)
                                changed(task.job)
                        waiting.extendleft([again] if again else [])
                    changed(None)
                    stop.check()
                    if not (waiting or running):
                        waiting, locked = deque(locked), []
            except Interrupted:
                _stop(running, cluster, tracker)
                raise
    finally:
        cluster.leave()


def _tasks(jobs: Sequence[Job], tracker: Tracker, cluster: Cluster) -> list[_Task]:
    needs = [needed(job.spec, cluster.machines) for job in jobs]
    return [
        _Task(job, order_for(job.spec, tracker.store, int(need["CPU"]), job.replaces), need)
        for job, need in zip(jobs, needs, strict=True)
    ]


def _handle_messages(
    task: _Task, cluster: Cluster, tracker: Tracker, retries: int, changed: Callable[[Job | None], None]
) -> _Task | None:
    """Update the task from its worker's messages; returns a task to submit again if the worker is lost."""
    job = task.job
    for message in cluster.messages(task.handle):
        if "started" in message:
            task.host, task.lease = message["started"], message["lease"]
            job.status, job.started, job.message = "running", time.monotonic(), f"on {task.host}"
            changed(job)
        for event in message.get("events", []):
            if job.add_event(event):
                changed(job)
        if "ended" in message:
            task.over, job.status, job.message = True, message["ended"], masked(message["message"])
            if job.done:
                job.state = State("done", message["run_id"], figures=message["figures"])
            changed(job)
        if "lost" in message:
            return _lost(task, message, tracker, retries, changed)
    return None


def _lost(
    task: _Task,
    message: dict[str, Any],
    tracker: Tracker,
    retries: int,
    changed: Callable[[Job | None], None],
) -> _Task | None:
    job, lost = task.job, [*task.lost, f"{task.host or 'a worker'}: {masked(message['lost'])}"]
    task.over = True
    if len(lost) > retries:
        job.status, job.message = (
            "lost",
            f"lost its worker {len(lost)} times, last {lost[-1]}; run the same command to continue",
        )
        tracker.abandon(job.spec.spec_id, job.message)
        changed(job)
        return None
    job.notices.append(f"its worker was lost and another continued it ({lost[-1]})")
    job.status, job.message = "waiting", "its worker was lost; another continues it"
    changed(job)
    if message["dead"]:
        order = {**task.order, "gone": task.lease, "patience": 0.0}
    else:
        order = {**task.order, "gone": None, "patience": _RELEASE_SECONDS}
    return _Task(job, order, task.need, lost=lost)


def _stop(running: Sequence[_Task], cluster: Cluster, tracker: Tracker) -> None:
    """Stop all running tasks. Workers close their runs as KILLED; late ones are closed here."""
    for task in running:
        cluster.cancel(task.handle)
    deadline = time.monotonic() + _CLOSING_SECONDS
    for task in running:
        while _is_open(task, tracker) and time.monotonic() < deadline:
            time.sleep(_POLL)
    for task in running:
        cluster.cancel(task.handle, force=True)
        task.job.status, task.job.message = "killed", "stopped; run the same command to continue"
        tracker.abandon(task.job.spec.spec_id, "stopped")


def _is_open(task: _Task, tracker: Tracker) -> bool:
    """Whether the task's worker has not yet closed its run and released the lease."""
    spec_id = task.job.spec.spec_id
    is_leased = task.lease is not None and is_held(tracker.client, tracker.experiment_id, spec_id, task.lease)
    return is_leased or tracker.is_running(spec_id)


def _check_artifacts(tracker: Tracker) -> None:
    location = tracker.client.get_experiment(tracker.experiment_id).artifact_location
    if urlparse(location).scheme in {"", "file"}:
        raise UserError(
            f"the server at {masked(tracker.store)} lets each machine write artifacts to its own "
            f"{masked(location)}; {_SERVER}"
        )
