"""Log runs to MLflow from their events; only the parent process of a run writes.

Runs are identified by their tag ``spec_id``, so an interrupted run continues under the same MLflow run.
After a crash no point is logged twice: events are read from the start and stored points are skipped.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank.errors import UserError
from bitrank.process.events import read_events
from bitrank.process.run_folder import is_complete, result_of
from bitrank.spec.provenance import git_state, shared_code
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind
from bitrank.tracking.lease import Lease
from bitrank.tracking.mlflow_views import save_task_views, save_views, shown_figures
from bitrank.tracking.plan_images import plan_images
from bitrank.tracking.run_state import StoredRun, code_of
from bitrank.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

# Ending of a profile whose runs only choose learning rates: nobody continues or exports them, and a grid has
# several times as many as the study, so their weights are not stored.
RATES = "-rates"
_BATCH = 900  # MLflow accepts 1,000 entries per call
_FILES = (
    "spec.json",
    "plan.json",
    "ranks.json",
    "predictions.parquet",
    "continuations.json",
    "result.json",
    "digests.json",
    "failure.json",
    "log.txt",
)
_PARAMS = (
    "config",
    "task",
    "model",
    "seed",
    "steps",
    "epochs",
    "batch_size",
    "learning_rate",
    "max_length",
    "adapter_scale",
    "scale_policy",
    "rank",
    "init_r",
    "target_r",
    "quant_backend",
    "quantizer",
    "processes",
    "data_digest",
    "model_digest",
)


class Tracker:
    """Runs of one profile in one store."""

    def __init__(self, client: MlflowClient, store: str, profile: str) -> None:
        self.client, self.store = client, store
        self._parsed = Store.parse(store)
        self._tasks: set[str] = set()  # tasks whose views are written
        self.experiment_id = _experiment(client, f"bitrank-{profile}", self._parsed.artifact_uri)

    def runs(self) -> dict[str, StoredRun]:
        """Return the newest run of each spec_id."""
        found: dict[str, StoredRun] = {}
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], order_by=["attributes.start_time ASC"], page_token=token
            )
            found.update(
                {run.data.tags["spec_id"]: _stored(run) for run in page if "spec_id" in run.data.tags}
            )
            token = page.token
            if not token:
                return found

    def find(self, spec_id: str) -> StoredRun | None:
        """Return the newest run of one spec_id."""
        options = {
            "filter_string": f"tags.spec_id = '{spec_id}'",
            "order_by": ["attributes.start_time DESC"],
            "max_results": 1,
        }
        found = self.client.search_runs([self.experiment_id], **options)
        return _stored(found[0]) if found else None

    def hold(self, spec_id: str) -> AbstractContextManager[object]:
        """The lease on a spec's run if the store is a server; for a file, folder locks are sufficient."""
        return nullcontext() if self._parsed.database else Lease(self.client, self.experiment_id, spec_id)

    def open(self, spec: RunSpec, run_id: str | None) -> RunLog:
        """Open the log of a new run, or of the interrupted run ``run_id``."""
        if spec.task_name not in self._tasks:
            self._tasks.add(spec.task_name)
            save_task_views(self.client, self.experiment_id, spec.task_name, task_kind(spec.kind).metric)
        if run_id is None:
            run_id = self.client.create_run(
                self.experiment_id, tags=tags_of(spec), run_name=spec.run_name
            ).info.run_id
            params = {
                key: value for key, value in asdict(spec).items() if key in _PARAMS and value is not None
            }
            self.client.log_batch(run_id, params=[_param(key, value) for key, value in params.items()])
        else:
            for tag in {"failure", "finding"} & set(self.client.get_run(run_id).data.tags):
                self.client.delete_tag(run_id, tag)  # failures of the last attempt
            self.client.update_run(run_id, status="RUNNING")
        return RunLog(self.client, run_id, with_weights=not spec.profile.endswith(RATES))

    def is_running(self, spec_id: str) -> bool:
        """Whether the store has the status RUNNING for a spec's run."""
        run = self.find(spec_id)
        return run is not None and run.status == "RUNNING"

    def abandon(self, spec_id: str, why: str) -> None:
        """Close a run whose writer is lost as KILLED.

        If the store is unreachable, the status stays RUNNING; the run can still be continued.
        """
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):
            run = self.find(spec_id)
            if run is not None and run.status == "RUNNING":
                self.client.set_tag(run.run_id, "failure", why[:500])
                self.client.set_terminated(run.run_id, "KILLED")

    def forget(self, run_id: str) -> None:
        """Mark a run as deleted; it can be restored in MLflow."""
        self.client.delete_run(run_id)


class RunLog:
    """Writes one run: batches of points during the run, artifacts and the true status at its end.

    ``with_weights``: the artifacts include the adapter and the last checkpoint.
    """

    def __init__(self, client: MlflowClient, run_id: str, with_weights: bool = True) -> None:
        self.run_id = run_id
        self._client, self._with_weights = client, with_weights
        known = client.get_run(run_id).data.metrics
        self._logged = {
            (key, point.step) for key in known for point in client.get_metric_history(run_id, key)
        }
        self._tags: dict[str, str] = {}

    def events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Log the metrics and tags of ``events`` that are not yet in the store."""
        points, tags = [], {}
        for event in events:
            tags.update(event.get("tags", {}))
            points += [
                _metric(key, value, event["time_ms"], event["step"])
                for key, value in event.get("metrics", {}).items()
                if self._new(key, event["step"])
            ]
        self._send(points, tags)

    def close(self, folder: Path, status: str, tags: Mapping[str, str]) -> None:
        """Log the remaining events, the final figures at step 0, the files in ``folder``, and the status."""
        self.events(read_events(folder / "events.jsonl"))
        result = (result_of(folder) or {}) if status == "FINISHED" else {}
        now = int(time.time() * 1000)
        self._send(
            [_metric(key, value, now, 0) for key, value in result.items() if self._new(key, 0)],
            {**tags, **shown_figures(result)},
        )
        for name in _FILES:
            if (folder / name).exists():
                self._client.log_artifact(self.run_id, str(folder / name))
        if status == "FINISHED" and is_complete(folder) and (folder / "ranks.json").exists():
            self._log_images(folder)
        for name in ("adapter", "checkpoint"):
            if self._with_weights and status == "FINISHED" and (folder / name).is_dir():
                self._client.log_artifacts(self.run_id, str(folder / name), name)
        self._client.set_terminated(self.run_id, status)

    def _log_images(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="bitrank-maps-") as temporary:
            name = self._client.get_run(self.run_id).info.run_name or self.run_id
            for file, content in plan_images(folder, name).items():
                path = Path(temporary) / file
                path.write_bytes(content)
                self._client.log_artifact(self.run_id, str(path), "maps")

    def _new(self, key: str, step: int) -> bool:
        if (key, step) in self._logged:
            return False
        self._logged.add((key, step))
        return True

    def _send(self, points: list[Any], tags: dict[str, str]) -> None:
        unlogged = {key: value for key, value in tags.items() if self._tags.get(key) != value}
        for start in range(0, len(points), _BATCH):
            self._client.log_batch(self.run_id, metrics=points[start : start + _BATCH])
        for key, value in unlogged.items():
            self._client.set_tag(self.run_id, key, value)
        self._tags.update(unlogged)


def _stored(run: Run) -> StoredRun:
    return StoredRun(run.info.run_id, run.info.status, run.data.tags, run.data.metrics)


def tags_of(spec: RunSpec) -> dict[str, str]:
    """MLflow tags that identify a run and its code."""
    from bitrank.spec.configs import CONFIGS

    family = CONFIGS[spec.config].family if spec.config in CONFIGS else "joint"
    tags = {
        "cell": spec.cell,
        "config": spec.config,
        "task": spec.task_name,
        "model": spec.model,
        "profile": spec.profile,
        "kind": spec.kind,
        "metric": task_kind(spec.kind).metric.key,
        "seed": str(spec.seed),
        "family": family,
        "spec_id": spec.spec_id,
        "code": code_of(spec),
        "shared_code": shared_code()[:12],
        **git_state(),
        "mlflow.source.name": "bitrank",
    }
    if "smoke" in spec.profile.split("-"):  # a study with the profile has both names
        tags["mlflow.note.content"] = "Tiny random model on toy text: a test, not a result."
    return tags


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    experiment = client.get_experiment_by_name(name) or _created(client, name, artifacts)
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"the experiment {name} was deleted in this store; restore it in MLflow or give another --store"
        )
    save_views(client, experiment.experiment_id, name)
    return str(experiment.experiment_id)


def _created(client: MlflowClient, name: str, artifacts: str | None) -> Experiment:
    """The new experiment, or that of another process that creates it on the same server at the same time."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_experiment(name, artifact_location=f"{artifacts}/{name}" if artifacts else None)
    except MlflowException:
        if client.get_experiment_by_name(name) is None:
            raise
    return client.get_experiment_by_name(name)


def _metric(key: str, value: float, time_ms: int, step: int) -> Any:
    from mlflow.entities import Metric

    return Metric(key, float(value), time_ms, step)


def _param(key: str, value: object) -> Any:
    from mlflow.entities import Param

    return Param(key, str(value))
