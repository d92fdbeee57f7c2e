"""The study matrix: what is to run, what is done, and what to show at the end."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bitrank.attempt import Job
from bitrank.display import Progress, console, results_table
from bitrank.executors import EXECUTORS, Execution
from bitrank.inputs import ask_hub
from bitrank.lease import ELSEWHERE
from bitrank.logs import Tracking, open_tracking
from bitrank.process.run_folder import result_of
from bitrank.results import write_results
from bitrank.specs import RunSpec
from bitrank.states import State, state_of
from bitrank.store import Store

_COMPLETE = {"done", "stale"}


@dataclass(frozen=True)
class Options:
    """Where to keep and how to run. ``store`` is a folder or an MLflow URI; ``force`` makes complete runs anew."""

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


def run_study(specs: Sequence[RunSpec], options: Options) -> list[Job]:
    """Run what is missing of ``specs``; afterwards every job tells how it ended. Results on disk are kept up to date."""
    tracker, jobs = look([ask_hub(spec) for spec in specs], options)
    for job in jobs:
        again = options.force or job.state.name == "outdated"
        if again and job.state.run_id is not None and job.status != "elsewhere":
            tracker.forget(job.state.run_id)  # numbers of two versions of the code must not meet in one run
            shutil.rmtree(job.folder, ignore_errors=True)
            job.state, job.status = State("new"), "waiting"
    due = [job for job in jobs if job.status == "waiting"]

    def changed(job: Job | None) -> None:
        progress.changed(job)
        if job is not None and job.done:
            write_results(_rows([job]), options.results)

    with Progress(due) as progress:
        if due:
            EXECUTORS[options.how.name].run(due, tracker, options.how, changed)
    write_results([row for row in _rows(jobs) if row[1]], options.results)
    return jobs


def show(jobs: Sequence[Job], options: Options) -> None:
    """The final table, what failed and why, and where everything lies."""
    screen = console()
    screen.print(results_table(_rows(jobs)))
    for said, names in _noted(jobs).items():
        runs = names[0] if len(names) == 1 else f"{len(names)} runs"
        screen.print(f"{runs}: note: {said}", highlight=False, markup=False, soft_wrap=True)
    for job in jobs:
        if job.message and not job.done:
            screen.print(f"{job.spec.run_name}: {job.status}: {job.message}", highlight=False, markup=False, soft_wrap=True)
    complete = sum(job.status in {"finished", "done", "stale"} for job in jobs)
    screen.print(f"\n{complete} of {len(jobs)} runs are complete.", highlight=False)
    if jobs and jobs[0].spec.profile == "smoke":
        screen.print("Profile smoke: tiny random models on toy text; these numbers mean nothing.", highlight=False)
    store = Store.parse(options.store).uri
    screen.print(f"results: {options.results}   store: {store}   UI: make ui", highlight=False, soft_wrap=True)


def _noted(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Each notice, and the names of the runs that gave it."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        for said in dict.fromkeys(job.notices):
            names.setdefault(said, []).append(job.spec.run_name)
    return names


def _job(spec: RunSpec, folder: Path, state: State) -> Job:
    status = state.name if state.name in {*_COMPLETE, "diverged"} else "waiting"
    if state.name in {"interrupted", "new"} and _locked(folder):
        status, state = "elsewhere", State("running", state.run_id, ELSEWHERE)
    return Job(spec, folder, state, status, state.note)


def _locked(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _rows(jobs: Sequence[Job]) -> list[tuple[RunSpec, dict[str, Any], str]]:
    return [(job.spec, result_of(job.folder) or dict(job.state.figures), job.status) for job in jobs]
