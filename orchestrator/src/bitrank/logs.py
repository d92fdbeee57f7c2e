"""What the executor asks of a run's log: one road for MLflow alone and for MLflow with a second log beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol


class Log(Protocol):
    """Writes one run; ``run_id`` is MLflow's."""

    run_id: str

    def events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Write the metrics and tags of ``events`` that are not there yet."""

    def close(self, folder: Path, status: str, tags: Mapping[str, str]) -> None:
        """Write what is left in ``folder``, the final figures, and MLflow's word for how the run ended."""
