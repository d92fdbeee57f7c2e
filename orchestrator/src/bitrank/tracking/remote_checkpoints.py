"""Checkpoints of a run under way among its artifacts, so that another machine can go on from there.

A snapshot is a folder of artifacts named after its step. It counts once the run's tag ``snapshot`` names it,
which is set when it has arrived whole; the one before is deleted then. With it go the events until then, the
figures before training, and how batches were cut.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PLACE, _TAG = "snapshots", "snapshot"
_FILES = ("events.jsonl", "zero_shot.json", "micro_tokens.txt", "log.txt")


class Snapshots:
    """The snapshots of one run, whose files lie in ``folder``."""

    def __init__(self, client: MlflowClient, run_id: str, folder: Path) -> None:
        self._client, self._run_id, self._folder = client, run_id, folder
        self._taken = folder / ".snapshot"
        self._last: str | None = client.get_run(run_id).data.tags.get(_TAG)

    def restore(self) -> str | None:
        """Put the last snapshot into the folder; its name, or None when there is none."""
        if self._last is None:
            return None
        self._taken.mkdir()
        place = Path(
            self._client.download_artifacts(self._run_id, f"{_PLACE}/{self._last}", str(self._taken))
        )
        for path in place.iterdir():
            path.rename(self._folder / path.name)
        shutil.rmtree(self._taken)
        return self._last

    def take(self) -> str | None:
        """Lay the newest checkpoint aside, with links, while the run goes on; its name, or None when that has
        been stored already.

        The files beside it are copied later than the checkpoint, so every event before it is among them.
        """
        while True:
            shutil.rmtree(self._taken, ignore_errors=True)
            name = max((path.name for path in (self._folder / "checkpoint").glob("step-*")), default=None)
            if name is None or name == self._last:
                return None
            with contextlib.suppress(FileNotFoundError):  # a newer one has replaced it
                _link(self._folder / "checkpoint" / name, self._taken / "checkpoint" / name)
                break
        for best in (self._folder / "checkpoint").glob("best-*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # dropped since: no kept checkpoint refers to it
                os.link(best, self._taken / "checkpoint" / best.name)
        for path in (self._folder / file for file in _FILES):
            if path.exists():
                shutil.copyfile(path, self._taken / path.name)
        return name

    def store(self, name: str) -> None:
        """Make what was taken last the run's snapshot ``name``."""
        self._client.log_artifacts(self._run_id, str(self._taken), f"{_PLACE}/{name}")
        self._client.set_tag(self._run_id, _TAG, name)
        before, self._last = self._last, name
        if before not in {None, name}:
            self._delete(f"{_PLACE}/{before}")

    def drop(self) -> None:
        """Delete what there is: the run needs to go on no more."""
        if self._last is not None:
            self._client.delete_tag(self._run_id, _TAG)
            self._delete(_PLACE)
            self._last = None

    def _delete(self, place: str) -> None:
        """Some artifact stores keep everything for ever; what stays there is dead weight and harms nothing."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository: Any = get_artifact_repository(
            self._client.get_run(self._run_id).info.artifact_uri, self._client.tracking_uri
        )
        with contextlib.suppress(NotImplementedError):
            repository.delete_artifacts(place)


def _link(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        os.link(path, target / path.name)
