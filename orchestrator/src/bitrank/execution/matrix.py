"""The study matrix: what is to run, what is done, and what to show at the end."""

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
    """Where to keep and how to run. ``store`` is a folder or an MLflow URI; ``force`` makes complete runs
    anew.
    """

    store: str
    results: Path
    how: Execution
    force: bool = False

    @property
    def work(self) -> Path:
        """Where runs keep their files while they run."""
        return Store.parse(self.store).work


def look(specs: Sequence[RunSpec], options: Options) -> tuple[Tracking, list[Job]]:
    """The tracker of the specs' profile, and every spec with its state in the store."""
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
        """Show that ``job`` moved on; None refreshes the clocks."""


def run_study(
    specs: Sequence[RunSpec], options: Options, watch: Callable[[Sequence[Job]], Watcher]
) -> list[Job]:
    """Run what is missing of ``specs``; afterwards every job tells how it ended. Results on disk are kept up
    to date.

    Raises :class:`UserError` when results cannot be written: before anything trains, or when all else is
    done.
    """
    # Before the store is made: neither a store nor results are left behind by a command that cannot run.
    check_tracking(options.how.wandb)
    check_results(options.results)
    tracker, jobs = look([resolve_hub_digests(spec) for spec in specs], options)
    for job in jobs:
        if options.force and job.state.run_id is not None and job.status != "elsewhere":
            job.replaces, job.status = job.state, "waiting"
    due = [job for job in jobs if job.status in {"waiting", "elsewhere"}]

    def changed(job: Job | None) -> None:
        progress.changed(job)
        if job is not None and job.done:
            with contextlib.suppress(
                UserError
            ):  # the last write below says so, when every run has had its turn
                write_results(result_rows([job]), options.results)

    with watch(due) as progress:
        if due:
            EXECUTORS[options.how.name].run(due, tracker, options.how, changed)
    write_results([row for row in result_rows(jobs) if row[1]], options.results)
    return jobs


def _job(spec: RunSpec, folder: Path, state: State) -> Job:
    status = state.name if state.name in {*COMPLETE, "diverged"} else "waiting"
    if state.name not in COMPLETE and is_locked(folder):
        status, state = "elsewhere", State("running", state.run_id, HELD_ELSEWHERE)
    return Job(spec, folder, state, status, state.note)


def result_rows(jobs: Sequence[Job]) -> list[tuple[RunSpec, dict[str, Any], str]]:
    return [(job.spec, result_of(job.folder) or dict(job.state.figures), job.status) for job in jobs]
