"""The local executor: runs on this machine, each in a process of its own.

It holds a lock on each run's folder while it runs, and the run's lease where the store is a server, so two
invocations never train the same spec. When it has them it asks the store again, since another invocation may
have done the run in between. Runs that another process holds go to the end of the queue.
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
from bitrank.execution.claim import claim, look_again
from bitrank.execution.interrupts import Interrupted, Signals
from bitrank.process.cores import usable_cores
from bitrank.process.environment import is_apple
from bitrank.process.run_folder import LOCK
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.base import Tracking
from bitrank.tracking.lease import HELD_ELSEWHERE, RunHeldElsewhere

RUN_BYTES = 3 * 2**30  # what a run of profile laptop may take, with room to spare
_POLL = 0.2  # seconds


def run_all(
    jobs: Sequence[Job], tracker: Tracking, slots: int, changed: Callable[[Job | None], None]
) -> None:
    """Run every job, at most ``slots`` at once. ``changed`` is called when a job moved on, and with None at
    each poll.

    One failing run does not stop the others. Raises :class:`Interrupted` after closing what runs as KILLED.
    When the store fails, such as on a full disk, the processes are ended and its error is raised.
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
            for attempt, held in queue.running.items():
                attempt.kill()
                held.close()
            raise
        except BaseException:
            for attempt in queue.running:
                attempt.stop()
            raise
    for job in queue.elsewhere:
        look_again(job, tracker)
        changed(job)


class _Queue:
    """Jobs that wait, run, or were found in the hands of another process."""

    def __init__(self, jobs: Sequence[Job], tracker: Tracking, changed: Callable[[Job | None], None]) -> None:
        self.waiting, self.running = deque(jobs), dict[Attempt, ExitStack]()
        self.elsewhere, self._last = list[Job](), False
        self._tracker, self._changed = tracker, changed

    def start(self, slots: int) -> None:
        """Start waiting jobs until ``slots`` run."""
        while self.waiting and len(self.running) < slots:
            job = self.waiting.popleft()
            if (held := _hold(job, self._tracker)) is None:
                self.elsewhere.append(job)
                continue
            if claim(job, self._tracker):
                attempt = Attempt(job, self._tracker.open(job.spec, job.state.run_id))
                self.running[attempt] = held
            else:
                held.close()
            self._changed(job)

    def follow(self) -> None:
        """Take in what the runs say, and close those that ended."""
        for attempt in list(self.running):
            for event in attempt.follow():
                if attempt.job.add_event(event):
                    self._changed(attempt.job)
            if attempt.ended:
                attempt.close()
                self.running.pop(attempt).close()
                self._changed(attempt.job)

    def try_again(self) -> None:
        """When nothing else is left, queue the jobs that another process held once more."""
        if not (self.waiting or self.running or self._last):
            self.waiting, self.elsewhere, self._last = deque(self.elsewhere), [], True


def _hold(job: Job, tracker: Tracking) -> ExitStack | None:
    """Keep others from the job's folder and from its run, until it is closed; None when another process has
    one of them.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    held = ExitStack()
    try:
        held.enter_context(FileLock(job.folder / LOCK, timeout=0))
        held.enter_context(tracker.hold(job.spec.spec_id))
    except (Timeout, RunHeldElsewhere):
        held.close()
        job.status, job.message = "elsewhere", HELD_ELSEWHERE
        return None
    return held


def choose_slots(specs: Sequence[RunSpec]) -> int:
    """How many runs at once when nobody says: as many as cores and memory carry, if each run's threads are
    fixed by its spec.

    One run a core is faster than one run on all cores (the README has the figures). Runs that take all
    threads, or share an accelerator, go one by one.
    """
    threads = {spec.threads and spec.threads * spec.processes for spec in specs}
    if None in threads or not threads or _has_accelerator():
        return 1
    cores = usable_cores()
    carried = int(psutil.virtual_memory().available / (RUN_BYTES * max(spec.processes for spec in specs)))
    return max(1, min(cores // max(thread for thread in threads if thread), carried, len(specs)))


def _has_accelerator() -> bool:
    return any(shutil.which(tool) for tool in ("nvidia-smi", "rocm-smi")) or is_apple()
