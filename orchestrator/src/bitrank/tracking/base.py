"""Where runs are recorded, as the executor sees it: one road for MLflow alone and for MLflow with a second
log beside it.
"""

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
        """Write the metrics and tags of ``events`` that are not there yet."""

    def close(self, folder: Path, status: str, tags: Mapping[str, str]) -> None:
        """Write what is left in ``folder``, the final figures, and MLflow's word for how the run ended."""


class Tracking(Protocol):
    """Opens the logs of runs of one profile, and knows the runs that are there."""

    def runs(self) -> dict[str, StoredRun]:
        """The newest run of each spec_id."""

    def find(self, spec_id: str) -> StoredRun | None:
        """The newest run of one spec_id."""

    def open(self, spec: RunSpec, run_id: str | None) -> Log:
        """The log of a new run, or of the interrupted run ``run_id``."""

    def hold(self, spec_id: str) -> AbstractContextManager[object]:
        """Keep others from a spec's run; raises :class:`~bitrank.tracking.lease.RunHeldElsewhere` when one of
        them has it.
        """

    def forget(self, run_id: str) -> None:
        """Take a run out of sight, for another to replace it."""


def check_tracking(wandb: bool) -> None:
    """Raise :class:`UserError` when Weights & Biases is asked for without its library or key. Nothing is
    made.
    """
    if wandb and os.environ.get("WANDB_MODE") != "disabled":
        from bitrank.tracking.wandb_tracker import check

        check()


def open_tracking(store: str, profile: str, work: Path, wandb: bool = False) -> Tracking:
    """What tracks the runs of ``profile`` in ``store``, whose files lie under ``work``; with ``wandb``
    Weights & Biases hears it all too.

    Raises :class:`UserError` when the store cannot be used, or Weights & Biases is asked for without its
    library or key.
    """
    if not wandb or os.environ.get("WANDB_MODE") == "disabled":
        return Tracker(open_store(store), store, profile)
    from bitrank.tracking.wandb_tracker import PairTracker, WandbTracker

    second = WandbTracker(work)  # first: what it lacks is said before a store is made
    return PairTracker(Tracker(open_store(store), store, profile), second)
