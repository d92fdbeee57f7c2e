"""The second look at a spec's state, when its lock or lease is held: another process may have done the run
meanwhile.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bitrank.process.run_folder import LOCK
from bitrank.tracking.run_state import State, StoredRun, state_of

if TYPE_CHECKING:
    from bitrank.execution.attempt import Job
    from bitrank.tracking.base import Tracking

COMPLETE = ("done", "stale")


def is_replaced(now: State, replaces: State | None) -> bool:
    """Whether the run of state ``now`` is to be forgotten and made again.

    ``replaces`` is the state in which the run was found when that was decided. A run that another process has
    begun or ended since is kept. A run of other code never is: numbers of two versions of the code must not
    meet in one run.
    """
    if now.run_id is None:
        return False
    if now.name == "outdated":
        return True
    return replaces is not None and (now.run_id, now.name) == (replaces.run_id, replaces.name)


def claim(job: Job, tracker: Tracking) -> bool:
    """Bring ``job`` up to date, while its lock is held; whether its run is still to be trained."""
    _look_up(job, tracker.find(job.spec.spec_id))
    if is_replaced(job.state, job.replaces):
        assert job.state.run_id is not None
        tracker.forget(job.state.run_id)
        _empty(job.folder)
        job.state, job.status = State("new"), "waiting"
    job.replaces = None
    return job.status == "waiting"


def look_again(job: Job, tracker: Tracking) -> None:
    """What became of a run that another process held to the end: its figures, if it is complete."""
    stored = tracker.find(job.spec.spec_id)
    state = state_of(job.spec, {job.spec.spec_id: stored} if stored else {})
    if state.name in COMPLETE and not is_replaced(state, job.replaces):
        job.state, job.status, job.message = state, state.name, state.note


def _look_up(job: Job, stored: StoredRun | None) -> None:
    job.state = state_of(job.spec, {job.spec.spec_id: stored} if stored else {})
    ended = job.state.name in {*COMPLETE, "diverged"}
    job.status, job.message = (job.state.name, job.state.note) if ended else ("waiting", "")


def _empty(folder: Path) -> None:
    """Remove the files of a run, and not the lock that is held on its folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()
