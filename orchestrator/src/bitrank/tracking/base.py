"""The executor's interface to trackers: MLflow alone, or MLflow with Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.run_state import StoredRun
from bitrank.tracking.store import open_store


class Log(Protocol):
    """Writes one run."""

    def events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Write the metrics and tags of ``events`` that are not yet logged."""

    def close(self, folder: Path, status: str, tags: Mapping[str, str]) -> None:
        """Write the remaining events, the final figures, the files in ``folder``, and MLflow's status."""


class Tracking(Protocol):
    """Opens the logs of runs of one profile, and finds stored runs."""

    def runs(self) -> dict[str, StoredRun]:
        """Return the newest run of each spec_id."""

    def find(self, spec_id: str) -> StoredRun | None:
        """Return the newest run of one spec_id."""

    def open(self, spec: RunSpec, run_id: str | None) -> Log:
        """Open the log of a new run, or of the interrupted run ``run_id``."""

    def hold(self, spec_id: str) -> AbstractContextManager[object]:
        """Lock a spec's run. Raises :class:`~bitrank.tracking.lease.RunHeldElsewhere` if it is locked."""

    def forget(self, run_id: str) -> None:
        """Mark a run as deleted, so that another replaces it."""


def check_tracking(wandb: bool) -> None:
    """Raise :class:`UserError` if ``wandb`` is requested without its library or key; creates nothing."""
    if wandb and os.environ.get("WANDB_MODE") != "disabled":
        from bitrank.tracking.wandb_tracker import check

        check()


def open_tracking(store: str, profile: str, work: Path, wandb: bool = False) -> Tracking:
    """Open the tracker of the runs of ``profile`` in ``store``; with ``wandb`` it also logs to W&B.

    ``work`` is the folder of the runs' files. Raises :class:`UserError` if the store cannot be used, or W&B
    is requested without its library or key.
    """
    if not wandb or os.environ.get("WANDB_MODE") == "disabled":
        return Tracker(open_store(store, for_runs=True), store, profile)
    from bitrank.tracking.wandb_tracker import PairTracker, WandbTracker

    second = WandbTracker(work)  # created first, so that its errors precede the creation of a store
    return PairTracker(Tracker(open_store(store, for_runs=True), store, profile), second)
