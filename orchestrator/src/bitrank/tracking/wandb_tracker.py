"""Log runs to Weights & Biases in addition to MLflow: the same points, under the MLflow run's id.

MLflow remains the store of record. The first error of W&B is reported, and then W&B is no longer used.

W&B numbers the rows of a run's history. Here a row contains the new points of one event, and its number
counts rows from the first event. A resumed run reads its events again, so the same points have the same
number in every attempt, and logging continues at the first number that W&B lacks. Offline, this number is
read from W&B's files, which lack the rows that were buffered when their writer was killed. The axis of charts
is the metric ``step``: W&B's own numbers must increase, and final figures belong to step 0, as in MLflow.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank.errors import UserError
from bitrank.process.events import read_events
from bitrank.process.run_folder import result_of
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.mlflow_tracker import RunLog, Tracker, tags_of
from bitrank.tracking.run_state import StoredRun

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

_INIT_SECONDS = 30.0  # timeout for W&B to open a run
_FINISH_SECONDS = 60.0  # timeout for W&B to upload the remaining points of a run


def check() -> None:
    """Raise :class:`UserError` if the library is missing, or the key for the online mode."""
    if find_spec("wandb") is None:
        raise UserError(
            "--wandb needs the library wandb; "
            f"install it with: {sys.executable} -m pip install 'wandb>=0.29,<1'"
        )
    if not (_offline() or os.environ.get("WANDB_MODE") == "disabled" or os.environ.get("WANDB_API_KEY")):
        raise UserError(
            "--wandb needs your key in the environment variable WANDB_API_KEY; WANDB_MODE=offline needs none"
        )


class PairTracker:
    """Logs every run to MLflow and to W&B."""

    def __init__(self, first: Tracker, second: WandbTracker) -> None:
        self._first, self._second = first, second

    def runs(self) -> dict[str, StoredRun]:
        """Return the newest run of each spec_id in MLflow."""
        return self._first.runs()

    def find(self, spec_id: str) -> StoredRun | None:
        """Return the newest run of one spec_id in MLflow."""
        return self._first.find(spec_id)

    def open(self, spec: RunSpec, run_id: str | None) -> PairLog:
        """Open both logs of a new run, or of the interrupted run ``run_id``."""
        log = self._first.open(spec, run_id)
        return PairLog(log, self._second.open(spec, log.run_id))

    def hold(self, spec_id: str) -> AbstractContextManager[object]:
        """Lock a spec's run in the MLflow store."""
        return self._first.hold(spec_id)

    def forget(self, run_id: str) -> None:
        """Mark a run as deleted in MLflow; its copy in W&B, where deletion is permanent, is kept."""
        self._first.forget(run_id)


class PairLog:
    """Logs to MLflow first: if the parent is killed in between, the next attempt logs the rest to W&B."""

    def __init__(self, first: RunLog, second: WandbLog) -> None:
        self._logs = (first, second)

    def events(self, events: Iterable[Mapping[str, Any]]) -> None:
        events = list(events)
        for log in self._logs:
            log.events(events)

    def close(self, folder: Path, status: str, tags: Mapping[str, str]) -> None:
        for log in self._logs:
            log.close(folder, status, tags)


class WandbTracker:
    """Opens runs in Weights & Biases, until its first error.

    ``work`` is the folder of the runs' own folders; W&B's files are in ``wandb/`` of its parent folder, or in
    WANDB_DIR. Raises :class:`UserError` as :func:`check` does.
    """

    def __init__(self, work: Path, report: Callable[[str], None] | None = None) -> None:
        check()
        os.environ.setdefault("WANDB_SILENT", "true")  # W&B's messages would break the progress table
        self._work = work
        self._report = report or _print_error
        self._failed = False

    def open(self, spec: RunSpec, run_id: str) -> WandbLog:
        """Open the W&B log of the MLflow run ``run_id`` under the same id; an interrupted run continues."""
        return WandbLog(self.try_to, lambda: self._init(spec, run_id))

    def try_to(self, act: Callable[[], None]) -> None:
        """Call ``act`` unless W&B has failed before. The first error is reported and disables W&B."""
        if self._failed:
            return
        try:
            act()
        except Exception as error:  # noqa: BLE001 - an error of W&B must not stop runs or MLflow's log
            self._failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            reason = reason.replace(os.environ.get("WANDB_API_KEY") or "\0", "***")[:300]
            self._report(
                f"Weights & Biases failed and is no longer used; runs continue, and MLflow has every point "
                f"({reason})"
            )

    def _init(self, spec: RunSpec, run_id: str) -> tuple[Run, int]:
        """Open the run in W&B; returns it with the number of the first row that it lacks."""
        import wandb

        environment, run_tags = os.environ, tags_of(spec)
        note = run_tags.get("mlflow.note.content")
        folder = Path(environment.get("WANDB_DIR", self._work.parent))
        first = _rows(folder, run_id) if _offline() else 0
        run = wandb.init(
            id=run_id,
            project=environment.get("WANDB_PROJECT", f"bitrank-{spec.profile}"),
            name=spec.run_name,
            group=spec.cell,
            tags=[run_tags[key][:64] for key in ("config", "task", "family", "profile")],
            notes=note,
            config={
                **{key: run_tags[key] for key in run_tags if not key.startswith("mlflow.")},
                **asdict(spec),
                "mlflow_run_id": run_id,
            },
            dir=folder,
            # Offline, W&B ignores `resume` with a warning and uses the same id anyway.
            resume=None if _offline() else "allow",
            reinit="create_new",  # several runs in parallel
            settings=wandb.Settings(
                init_timeout=float(environment.get("WANDB_INIT_TIMEOUT", _INIT_SECONDS)),
                finish_timeout=float(environment.get("WANDB_FINISH_TIMEOUT", _FINISH_SECONDS)),
                finish_timeout_raises=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,  # statistics of this process, which does not train
            ),
        )
        run.define_metric("*", step_metric="step")
        return run, max(first, run.starting_step)


class WandbLog:
    """Writes one run to W&B. ``try_to`` calls functions that may fail; ``init`` opens the run."""

    def __init__(
        self, try_to: Callable[[Callable[[], None]], None], init: Callable[[], tuple[Run, int]]
    ) -> None:
        self._try_to = try_to
        self._points, self._tags = set[tuple[str, int]](), dict[str, str]()
        self._row = 0
        try_to(lambda: self._open(init))

    def events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Send the metrics and tags of ``events`` that are not yet in W&B."""
        self._try_to(lambda: self._events(events))

    def close(self, folder: Path, status: str, tags: Mapping[str, str]) -> None:
        """Send the remaining events, the final figures at step 0, and the status."""
        self._try_to(lambda: self._close(folder, status, tags))

    def _open(self, init: Callable[[], tuple[Run, int]]) -> None:
        self._run, self._first = init()

    def _events(self, events: Iterable[Mapping[str, Any]]) -> None:
        for event in events:
            self._metrics(event.get("metrics", {}), event.get("step", 0))
            unlogged = {
                key: value for key, value in event.get("tags", {}).items() if self._tags.get(key) != value
            }
            if unlogged:
                self._run.config.update(unlogged, allow_val_change=True)
                self._tags.update(unlogged)

    def _close(self, folder: Path, status: str, tags: Mapping[str, str]) -> None:
        self._events(read_events(folder / "events.jsonl"))
        if status == "FINISHED":
            self._metrics(result_of(folder) or {}, 0)
        self._run.summary.update({"status": status, **tags})
        self._run.finish(exit_code=_exit_code(status, tags))

    def _metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Make one row of the new metrics, and send it if W&B lacks its number."""
        unlogged = {key: float(value) for key, value in metrics.items() if (key, step) not in self._points}
        if not unlogged:
            return
        self._points.update((key, step) for key in unlogged)
        if self._row >= self._first:
            self._run.log({**unlogged, "step": step}, step=self._row)
        self._row += 1


def _print_error(message: str) -> None:
    print(f"bitrank: {message}", file=sys.stderr, flush=True)


def _offline() -> bool:
    return os.environ.get("WANDB_MODE") in {"offline", "dryrun"}


def _rows(folder: Path, run_id: str) -> int:
    """The number of rows of a run's history in W&B's files under ``folder``; rows are in order."""
    return max(
        (_last_row(path) + 1 for path in folder.glob(f"wandb/*-{run_id}/run-{run_id}.wandb")), default=0
    )


def _last_row(path: Path) -> int:
    """The number of the last complete row in a W&B file, or -1; a killed writer leaves a truncated end."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    last, store = -1, DataStore()
    try:
        store.open_for_scan(str(path))
        while (content := store.scan_data()) is not None:
            record = Record.FromString(content)
            if record.WhichOneof("record_type") == "history":
                last = next(
                    int(item.value_json)
                    for item in record.history.item
                    if "_step" in (item.key, *item.nested_key)
                )
    except (AssertionError, struct.error):
        pass  # a truncated record at the end
    finally:
        store.close()
    return last


def _exit_code(status: str, tags: Mapping[str, str]) -> int:
    """The exit code as in a shell: 128 + n for signal n. Nonzero for an unfinished run, for W&B's status."""
    code = int(tags.get("exit_code", 0))
    return 0 if status == "FINISHED" else 128 - code if code < 0 else code or 1
