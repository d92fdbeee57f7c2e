"""Execution options: executor, parallel jobs, retries, cluster, second tracker."""

from __future__ import annotations

from dataclasses import dataclass

RUN_BYTES = 3 * 2**30  # memory reserved for a run of profile laptop, with a margin


@dataclass(frozen=True)
class Execution:
    """The executor's name and its options.

    ``jobs`` is the number of parallel runs (None: the executor's default), ``retries`` of a run after its
    machine or worker is lost, ``ray_address`` of a Ray cluster (None starts one on this machine), ``wandb``
    enables logging to Weights & Biases.
    """

    name: str = "local"
    jobs: int | None = None
    retries: int = 2
    ray_address: str | None = None
    wandb: bool = False
