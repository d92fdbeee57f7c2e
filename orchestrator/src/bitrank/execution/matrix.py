"""The study matrix: find missing runs, execute them, and collect the results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from bitrank.errors import UserError
from bitrank.execution.attempt import Job
from bitrank.execution.claim import COMPLETE
from bitrank.execution.options import Execution
from bitrank.execution.registry import EXECUTORS
from bitrank.process.run_folder import is_locked, result_of
from bitrank.spec.inputs import resolve_hub_digests
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.base import Tracking, check_tracking, open_tracking
from bitrank.tracking.lease import HELD_ELSEWHERE
from bitrank.tracking.results_files import check_results, write_results
from bitrank.tracking.run_state import State, state_of
from bitrank.tracking.store import Store


@dataclass(frozen=True)
class Options:
    """Store, results folder and executor. ``store`` is a folder or an MLflow URI; ``force`` repeats runs."""

    store: str
    results: Path
    how: Execution
    force: bool = False

    @property
    def work(self) -> Path:
        """The folder of the files of runs in progress."""
        return Store.parse(self.store).work


def open_jobs(specs: Sequence[RunSpec], options: Options) -> tuple[Tracking, list[Job]]:
    """Return the tracker of the specs' profile, and a job for every spec with its state in the store."""
    tracker = open_tracking(options.store, specs[0].profile, options.work, options.how.wandb)
    runs = tracker.runs()
    return tracker, [_job(spec, options.work / spec.spec_id, state_of(spec, runs)) for spec in specs]


class Watcher(Protocol):
    """Shows jobs while they run."""

    def __enter__(self) -> Watcher: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def changed(self, job: Job | None) -> None:
        """Show the new state of ``job``; None refreshes the remaining times."""


def run_study(
    specs: Sequence[RunSpec], options: Options, watch: Callable[[Sequence[Job]], Watcher]
) -> list[Job]:
    """Execute the missing runs of ``specs`` and update the results on disk; returns a job for every spec.

    Raises :class:`UserError` when results cannot be written: before training, or after the last run.
    """
    # Checked before the store is created, so that a command that cannot run creates nothing.
    check_tracking(options.how.wandb)
    check_results(options.results, specs)
    tracker, jobs = open_jobs([resolve_hub_digests(spec) for spec in specs], options)
    for job in jobs:
        if options.force and job.status != "locked":
            job.replaces, job.status = job.state, "waiting"
    due = [job for job in jobs if job.status in {"waiting", "locked"}]

    def changed(job: Job | None) -> None:
        progress.changed(job)
        if job is not None and job.done:
            # The last write below reports the error, after all runs were executed.
            with contextlib.suppress(UserError):
                write_results(result_rows([job]), options.results)

    with watch(due) as progress:
        if due:
            EXECUTORS[options.how.name].run(due, tracker, options.how, changed)
    write_results([row for row in result_rows(jobs) if row[1]], options.results)
    return jobs


def _job(spec: RunSpec, folder: Path, state: State) -> Job:
    status = state.name if state.name in {*COMPLETE, "diverged"} else "waiting"
    if state.name not in COMPLETE and is_locked(folder):
        status, state = "locked", State("running", state.run_id, HELD_ELSEWHERE)
    return Job(spec, folder, state, status, state.note)


def result_rows(jobs: Sequence[Job]) -> list[tuple[RunSpec, dict[str, Any], str]]:
    return [(job.spec, result_of(job.folder) or dict(job.state.figures), job.status) for job in jobs]
