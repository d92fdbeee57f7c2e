"""Executors by name, with their preconditions. A new executor is one entry here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitrank.errors import UserError
from bitrank.execution.options import Execution

if TYPE_CHECKING:
    from bitrank.execution.attempt import Job
    from bitrank.tracking.base import Tracking

    Changed = Callable[[Job | None], None]


@dataclass(frozen=True)
class Executor:
    """An executor of runs.

    ``check`` raises :class:`UserError` before anything is opened if the options or the store are unsuitable.
    ``run`` executes jobs, calls its last argument with each updated job or with None, and raises
    ``Interrupted`` after closing running jobs as KILLED.
    """

    about: str
    check: Callable[[Execution, str], None]
    run: Callable[[Sequence[Job], Tracking, Execution, Changed], None]


def _run_here(jobs: Sequence[Job], tracker: Tracking, how: Execution, changed: Changed) -> None:
    from bitrank.execution.local import choose_slots, run_all
    from bitrank.execution.prefetch import prefetch

    specs = [job.spec for job in jobs]
    slots = how.jobs or min(choose_slots(specs), max(1, len(specs)))
    with prefetch(specs, slots):
        run_all(jobs, tracker, slots, changed)


def _check_ray(how: Execution, store: str) -> None:
    from bitrank.execution.ray.driver import check

    check(how, store)


def _run_on_ray(jobs: Sequence[Job], tracker: Tracking, how: Execution, changed: Changed) -> None:
    from bitrank.execution.ray.driver import run_all
    from bitrank.tracking.mlflow_tracker import Tracker

    assert isinstance(tracker, Tracker), "check excludes a second log"
    run_all(jobs, tracker, how, changed)


LOCAL = "local"
EXECUTORS: dict[str, Executor] = {
    LOCAL: Executor("on this machine", lambda how, store: None, _run_here),
    "ray": Executor(
        "on the machines of a Ray cluster, with an MLflow server as the store", _check_ray, _run_on_ray
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select and configure an executor."""
    about = "; ".join(f"{name}: {executor.about}" for name, executor in EXECUTORS.items())
    parser.add_argument(
        "--executor", choices=list(EXECUTORS), default=LOCAL, help=f"{about} (default: %(default)s)"
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=Execution.retries,
        help="ray: how often a run continues from its last checkpoint after its worker is lost "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="ray: address of the cluster (default: RAY_ADDRESS, else a new one on this machine)",
    )


def execution(arguments: argparse.Namespace, jobs: int | None) -> Execution:
    """Options of the executor from ``arguments``. Raises :class:`UserError` if they are invalid."""
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be 1 or more, got {jobs}")
    if arguments.retries < 0:
        raise UserError(f"--retries must be 0 or more, got {arguments.retries}")
    how = Execution(
        arguments.executor,
        jobs,
        arguments.retries,
        arguments.ray_address or os.environ.get("RAY_ADDRESS") or None,
        arguments.wandb,
    )
    EXECUTORS[how.name].check(how, arguments.store)
    return how
