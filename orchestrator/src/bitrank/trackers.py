"""Which tracker a study writes through: MLflow's, or MLflow's with a second log beside each of its own."""

from __future__ import annotations

import os
from pathlib import Path

from bitrank.store import open_store
from bitrank.tracking import Tracker


def open_tracker(store: str, profile: str, work: Path, wandb: bool = False) -> Tracker:
    """The tracker of ``profile`` in ``store``, whose runs' files lie under ``work``; with ``wandb`` Weights & Biases hears it all too.

    Raises :class:`UserError` when the store cannot be used, or Weights & Biases is asked for without its library or key.
    """
    if not wandb or os.environ.get("WANDB_MODE") == "disabled":
        return Tracker(open_store(store), store, profile)
    from bitrank.wandb_log import PairTracker, WandbTracker

    second = WandbTracker(work)  # first: what it lacks is said before a store is made
    return PairTracker(open_store(store), store, profile, second)
