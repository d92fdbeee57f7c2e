"""Weights & Biases beside MLflow: the same points under the MLflow run's id, from the same one writer.

MLflow stays the store of record. Whatever fails on the way to W&B is said once, and W&B is left alone from
then on.

W&B numbers the rows of a run's history. A row here is what one event brought that is new, and its number
counts such rows from the start of the events, which a resumed run reads again: so the same points have the
same number at every start, and a run that W&B has already goes on at the first number that W&B lacks. Offline
its files are read: what their writer had in hand when it was killed is not in them. The axis of the charts is
the metric ``step``: W&B's own numbers must rise, and final figures belong to step 0, as in MLflow.
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

_INIT_SECONDS, _FINISH_SECONDS = (
    30.0,
    60.0,
)  # how long the matrix waits for W&B to open a run, and to take what is left of it


def check() -> None:
    """Raise :class:`UserError` when the library is missing, or the key of a W&B that is to be reached."""
    if find_spec("wandb") is None:
        raise UserError(
            f"--wandb needs the library wandb; install it with: {sys.executable} -m pip install 'wandb>=0.29,<1'"
        )
    if not (_offline() or os.environ.get("WANDB_MODE") == "disabled" or os.environ.get("WANDB_API_KEY")):
        raise UserError(
            "--wandb needs your key in the environment variable WANDB_API_KEY; WANDB_MODE=offline needs none"
        )


class PairTracker:
    """MLflow's logs, each with one of W&B beside it."""

    def __init__(self, first: Tracker, second: WandbTracker) -> None:
        self._first, self._second = first, second

    def runs(self) -> dict[str, StoredRun]:
        """The newest run of each spec_id, by MLflow."""
        return self._first.runs()

    def find(self, spec_id: str) -> StoredRun | None:
        """The newest run of one spec_id, by MLflow."""
        return self._first.find(spec_id)

    def open(self, spec: RunSpec, run_id: str | None) -> PairLog:
        """Both logs of a new run, or of the interrupted run ``run_id``."""
        log = self._first.open(spec, run_id)
        return PairLog(log, self._second.open(spec, log.run_id))

    def hold(self, spec_id: str) -> AbstractContextManager[object]:
        """Keep others from a spec's run, as MLflow's store can."""
        return self._first.hold(spec_id)

    def forget(self, run_id: str) -> None:
        """Mark a run as deleted in MLflow. W&B keeps its copy, for its runs cannot be restored."""
        self._first.forget(run_id)


class PairLog:
    """MLflow is told first: when the parent is killed in between, the rest reaches W&B from the events, on
    the next start.
    """

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
    """Opens runs in Weights & Biases, until something goes wrong there.

    ``work`` is the folder of the runs' own folders; W&B's files lie beside it, in ``wandb/``, unless
    WANDB_DIR says otherwise. Raises :class:`UserError` as :func:`check` does.
    """

    def __init__(self, work: Path, say: Callable[[str], None] | None = None) -> None:
        check()
        os.environ.setdefault("WANDB_SILENT", "true")  # the screen shows the matrix
        self._work = work
        self._say = say or (lambda run_tags: print(f"bitrank: {run_tags}", file=sys.stderr, flush=True))
        self._left = False

    def open(self, spec: RunSpec, run_id: str) -> WandbLog:
        """The W&B log of the MLflow run ``run_id``, under the same id; an interrupted one goes on."""
        return WandbLog(self.try_to, lambda: self._init(spec, run_id))

    def try_to(self, act: Callable[[], None]) -> None:
        """Do ``act`` unless W&B has failed before; the first failure is said, and the last thing that is
        asked of it.
        """
        if self._left:
            return
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever W&B raises, the runs and MLflow's points must not be lost
            self._left = True
            reason = " ".join(f"{type(error).__name__}: {error}".split()).replace(
                os.environ.get("WANDB_API_KEY") or "\0", "***"
            )
            self._say(
                f"Weights & Biases failed and is left alone; runs go on, MLflow has every point ({reason[:300]})"
            )

    def _init(self, spec: RunSpec, run_id: str) -> tuple[Run, int]:
        """The run in W&B, and the number of the first row that it lacks."""
        import wandb

        environment, run_tags = os.environ, tags_of(spec)
        note, folder = (
            run_tags.get("mlflow.note.content"),
            Path(environment.get("WANDB_DIR", self._work.parent)),
        )
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
            resume=None
            if _offline()
            else "allow",  # offline W&B ignores the word with a warning, and takes the same id all the same
            reinit="create_new",  # several runs at once
            settings=wandb.Settings(
                init_timeout=float(environment.get("WANDB_INIT_TIMEOUT", _INIT_SECONDS)),
                finish_timeout=float(environment.get("WANDB_FINISH_TIMEOUT", _FINISH_SECONDS)),
                finish_timeout_raises=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,  # of this process, which only watches
            ),
        )
        run.define_metric("*", step_metric="step")
        return run, max(first, run.starting_step)


class WandbLog:
    """Writes one run to W&B. ``try_to`` does what may fail; ``init`` opens the run and knows the first row
    that it lacks.
    """

    def __init__(
        self, try_to: Callable[[Callable[[], None]], None], init: Callable[[], tuple[Run, int]]
    ) -> None:
        self._try_to = try_to
        self._points, self._tags = set[tuple[str, int]](), dict[str, str]()
        self._row = 0
        try_to(lambda: self._open(init))

    def events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Send the metrics and tags of ``events`` that W&B does not have yet."""
        self._try_to(lambda: self._events(events))

    def close(self, folder: Path, status: str, tags: Mapping[str, str]) -> None:
        """Send what is left of the events, the final figures at step 0, and how the run ended."""
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
        """One row of the metrics that were not in an earlier one; sent from the first on that W&B lacks."""
        unlogged = {key: float(value) for key, value in metrics.items() if (key, step) not in self._points}
        if not unlogged:
            return
        self._points.update((key, step) for key in unlogged)
        if self._row >= self._first:
            self._run.log({**unlogged, "step": step}, step=self._row)
        self._row += 1


def _offline() -> bool:
    return os.environ.get("WANDB_MODE") in {"offline", "dryrun"}


def _rows(folder: Path, run_id: str) -> int:
    """How many rows of a run's history W&B's files under ``folder`` hold. Rows are written in order of their
    numbers.
    """
    return max(
        (_last_row(path) + 1 for path in folder.glob(f"wandb/*-{run_id}/run-{run_id}.wandb")), default=0
    )


def _last_row(path: Path) -> int:
    """The number of the last whole row in one of W&B's files, -1 when there is none; a killed writer tears
    the end off.
    """
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
        pass  # where the whole records end
    finally:
        store.close()
    return last


def _exit_code(status: str, tags: Mapping[str, str]) -> int:
    """As a shell says it: 128 + n for signal n. Never 0 for a run that did not finish, which W&B would call
    finished.
    """
    code = int(tags.get("exit_code", 0))
    return 0 if status == "FINISHED" else 128 - code if code < 0 else code or 1
