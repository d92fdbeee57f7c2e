"""Check a spec's state again after locking it: another process may have finished the run in between."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bitrank.process.run_folder import LOCK, is_of_code
from bitrank.tracking.run_state import State, StoredRun, code_of, state_of

if TYPE_CHECKING:
    from bitrank.execution.attempt import Job
    from bitrank.tracking.base import Tracking

COMPLETE = ("done", "stale")


def is_replaced(now: State, replaces: State | None) -> bool:
    """Whether the run of state ``now`` must be removed and repeated.

    ``replaces`` is the state of the run when the user requested to repeat it. A run that another process has
    started or finished since then is kept. An unfinished run of other code is always replaced: one run must
    not contain numbers of two versions of the code.
    """
    if now.run_id is None:
        return False
    if now.name == "outdated":
        return True
    return replaces is not None and (now.run_id, now.name) == (replaces.run_id, replaces.name)


def claim(job: Job, tracker: Tracking) -> bool:
    """Update ``job`` from the store after locking it; returns whether its run must still be trained.

    Files of a run that the store does not know, because it was deleted there or another store is used, are
    removed if other code made them or the user requested to repeat the run: they would be recorded as results
    of this code.
    """
    _set_state(job, tracker.find(job.spec.spec_id))
    if is_replaced(job.state, job.replaces):
        assert job.state.run_id is not None
        tracker.forget(job.state.run_id)
        _empty(job.folder)
        job.state, job.status = State("new"), "waiting"
    elif job.state.run_id is None and (job.replaces or not is_of_code(job.folder, code_of(job.spec))):
        _empty(job.folder)
    job.replaces = None
    return job.status == "waiting"


def update_if_complete(job: Job, tracker: Tracking) -> None:
    """Update ``job`` from the store if another process has completed its run."""
    stored = tracker.find(job.spec.spec_id)
    state = state_of(job.spec, {job.spec.spec_id: stored} if stored else {})
    if state.name in COMPLETE and not is_replaced(state, job.replaces):
        job.state, job.status, job.message = state, state.name, state.note


def _set_state(job: Job, stored: StoredRun | None) -> None:
    job.state = state_of(job.spec, {job.spec.spec_id: stored} if stored else {})
    ended = job.state.name in {*COMPLETE, "diverged"}
    job.status, job.message = (job.state.name, job.state.note) if ended else ("waiting", "")


def _empty(folder: Path) -> None:
    """Remove the files of a run, except the lock file of its folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()
