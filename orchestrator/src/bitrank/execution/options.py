"""How runs are executed: executor, jobs, retries, cluster, second tracker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """The executor's name and what it is told: ``jobs`` runs at the same time (None lets it decide),
    ``retries`` of a run whose machine or worker is lost, ``ray_address`` of a Ray cluster (None starts one
    here), ``wandb`` to log to Weights & Biases too."""

    name: str = "local"
    jobs: int | None = None
    retries: int = 2
    ray_address: str | None = None
    wandb: bool = False
