"""Checkpoints of an unfinished run as artifacts, so that another machine can continue the run.

A snapshot is a folder of artifacts named after its step. It is valid once the run's tag ``snapshot`` names
it, which is set after the upload is complete; then the previous snapshot is deleted. A snapshot also contains
the events so far, the figures before training, the size of passes, and the plan of a planned arm.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank.process.run_folder import PLAN_DIGEST, REQUESTED_PLAN

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ARTIFACTS, _TAG = "snapshots", "snapshot"
_FILES = ("events.jsonl", "zero_shot.json", "micro_tokens.txt", "log.txt", REQUESTED_PLAN, PLAN_DIGEST)


class Snapshots:
    """Snapshots of one run, whose files are in ``folder``."""

    def __init__(self, client: MlflowClient, run_id: str, folder: Path) -> None:
        self._client, self._run_id, self._folder = client, run_id, folder
        self._local = folder / ".snapshot"
        self._last: str | None = client.get_run(run_id).data.tags.get(_TAG)

    def restore(self) -> str | None:
        """Download the last snapshot to the folder; returns its name, or None without a snapshot."""
        if self._last is None:
            return None
        self._local.mkdir()
        artifact = f"{_ARTIFACTS}/{self._last}"
        downloaded = Path(self._client.download_artifacts(self._run_id, artifact, str(self._local)))
        for path in downloaded.iterdir():
            path.rename(self._folder / path.name)
        shutil.rmtree(self._local)
        return self._last

    def take(self) -> str | None:
        """Link the newest checkpoint into the snapshot folder; returns its name, or None if it is stored.

        The other files are copied after the checkpoint, so they contain every event before it.
        """
        while True:
            shutil.rmtree(self._local, ignore_errors=True)
            name = max((path.name for path in (self._folder / "checkpoint").glob("step-*")), default=None)
            if name is None or name == self._last:
                return None
            with contextlib.suppress(FileNotFoundError):  # a newer checkpoint has replaced it
                _link(self._folder / "checkpoint" / name, self._local / "checkpoint" / name)
                break
        for best in (self._folder / "checkpoint").glob("best-*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # deleted: no stored checkpoint refers to it
                os.link(best, self._local / "checkpoint" / best.name)
        for path in (self._folder / file for file in _FILES):
            if path.exists():
                shutil.copyfile(path, self._local / path.name)
        return name

    def store(self, name: str) -> None:
        """Upload the result of the last :meth:`take` as the run's snapshot ``name``."""
        self._client.log_artifacts(self._run_id, str(self._local), f"{_ARTIFACTS}/{name}")
        self._client.set_tag(self._run_id, _TAG, name)
        before, self._last = self._last, name
        if before not in {None, name}:
            self._delete(f"{_ARTIFACTS}/{before}")

    def drop(self) -> None:
        """Delete all snapshots of the run, which is complete."""
        if self._last is not None:
            self._client.delete_tag(self._run_id, _TAG)
            self._delete(_ARTIFACTS)
            self._last = None

    def _delete(self, artifact: str) -> None:
        """Delete an artifact; ignored by stores that cannot delete, where it only takes space."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository: Any = get_artifact_repository(
            self._client.get_run(self._run_id).info.artifact_uri, self._client.tracking_uri
        )
        with contextlib.suppress(NotImplementedError):
            repository.delete_artifacts(artifact)


def _link(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        os.link(path, target / path.name)
