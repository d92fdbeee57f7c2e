"""The local executor: runs on this machine, each in its own process.

It locks each run's folder during the run, and takes the run's lease if the store is a server, so two
invocations never train the same spec. After locking it reads the state from the store again, because another
invocation may have finished the run. Runs that another process has locked are retried at the end.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import psutil
from filelock import FileLock, Timeout

from bitrank.execution.attempt import Attempt, Job
from bitrank.execution.claim import claim, update_if_complete
from bitrank.execution.interrupts import Interrupted, Signals
from bitrank.execution.options import RUN_BYTES
from bitrank.process.cores import usable_cores
from bitrank.process.environment import is_apple
from bitrank.process.run_folder import LOCK
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.base import Tracking
from bitrank.tracking.lease import HELD_ELSEWHERE, RunHeldElsewhere

_POLL = 0.2  # seconds


def run_all(
    jobs: Sequence[Job], tracker: Tracking, slots: int, changed: Callable[[Job | None], None]
) -> None:
    """Run all jobs, at most ``slots`` in parallel.

    Calls ``changed`` with each updated job, and with None at each poll. A failed run does not stop the
    others. Raises :class:`Interrupted` after closing running jobs as KILLED. When the store fails, such as on
    a full disk, the processes are ended and the store's error is raised.
    """
    queue = _Queue(jobs, tracker, changed)
    with Signals() as stop:
        try:
            while queue.waiting or queue.running:
                queue.start(slots)
                queue.follow()
                changed(None)
                time.sleep(_POLL)
                stop.check()
                queue.try_again()
        except Interrupted:
            for attempt, locks in queue.running.items():
                attempt.kill()
                locks.close()
            raise
        except BaseException:
            for attempt in queue.running:
                attempt.stop()
            raise
    for job in queue.locked:
        update_if_complete(job, tracker)
        changed(job)


class _Queue:
    """Jobs that wait, jobs that run, and ``locked`` jobs, which another process runs."""

    def __init__(self, jobs: Sequence[Job], tracker: Tracking, changed: Callable[[Job | None], None]) -> None:
        self.waiting, self.running = deque(jobs), dict[Attempt, ExitStack]()
        self.locked, self._retried = list[Job](), False
        self._tracker, self._changed = tracker, changed

    def start(self, slots: int) -> None:
        """Start waiting jobs until ``slots`` run."""
        while self.waiting and len(self.running) < slots:
            job = self.waiting.popleft()
            if (locks := _lock(job, self._tracker)) is None:
                self.locked.append(job)
                continue
            if claim(job, self._tracker):
                attempt = Attempt(job, self._tracker.open(job.spec, job.state.run_id))
                self.running[attempt] = locks
            else:
                locks.close()
            self._changed(job)

    def follow(self) -> None:
        """Read the events of all running jobs, and close those that ended."""
        for attempt in list(self.running):
            for event in attempt.follow():
                if attempt.job.add_event(event):
                    self._changed(attempt.job)
            if attempt.ended:
                attempt.close()
                self.running.pop(attempt).close()
                self._changed(attempt.job)

    def try_again(self) -> None:
        """When no other job is left, queue the jobs that another process had locked once more."""
        if not (self.waiting or self.running or self._retried):
            self.waiting, self.locked, self._retried = deque(self.locked), [], True


def _lock(job: Job, tracker: Tracking) -> ExitStack | None:
    """Lock the job's folder and run until the result is closed; None if another process has locked one."""
    job.folder.mkdir(parents=True, exist_ok=True)
    locks = ExitStack()
    try:
        locks.enter_context(FileLock(job.folder / LOCK, timeout=0))
        locks.enter_context(tracker.hold(job.spec.spec_id))
    except (Timeout, RunHeldElsewhere):
        locks.close()
        job.status, job.message = "locked", HELD_ELSEWHERE
        return None
    return locks


def choose_slots(specs: Sequence[RunSpec]) -> int:
    """The default number of parallel runs: as many as cores and memory allow.

    One run per core is faster than one run on all cores (decision 8 has the figures). Runs whose spec sets no
    number of threads, or that share an accelerator, are executed one at a time.
    """
    threads = {spec.threads and spec.threads * spec.processes for spec in specs}
    may_share = any(spec.device != "cpu" for spec in specs)
    if None in threads or not threads or (may_share and _has_accelerator()):
        return 1
    cores = usable_cores()
    run_bytes = RUN_BYTES * max(spec.processes for spec in specs)
    fitting = int(psutil.virtual_memory().available / run_bytes)
    return max(1, min(cores // max(thread for thread in threads if thread), fitting))


def _has_accelerator() -> bool:
    return any(shutil.which(tool) for tool in ("nvidia-smi", "rocm-smi")) or is_apple()
