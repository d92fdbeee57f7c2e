"""Progress and results: a live table on a terminal, plain lines in a pipe, and a final table."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bitrank.execution.attempt import Job
from bitrank.execution.interrupts import Interrupted
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind
from bitrank.terminal import console as new_console

_STYLE = {"finished": "green", "done": "green", "running": "bold", "waiting": "dim", "stale": "yellow"}
_PLAIN_EVERY = 10.0  # seconds between two plain lines of one run


class Progress:
    """A live table of jobs on a terminal; in a pipe, one line for each change."""

    def __init__(self, jobs: Sequence[Job], console: Console | None = None) -> None:
        self._jobs = list(jobs)
        self._console = console or new_console()
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True)
            if self._console.is_terminal
            else None
        )
        self._printed: dict[str, tuple[str, float]] = {}
        self._noted: set[tuple[str, str]] = set()

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def changed(self, job: Job | None) -> None:
        """Show the new state of ``job``; None refreshes the remaining times.

        Raises :class:`Interrupted` when the reader of the output is gone, as programs end then: the runs are
        closed.
        """
        try:
            self._show(job)
        except BrokenPipeError:
            raise Interrupted(signal.SIGPIPE) from None

    def _show(self, job: Job | None) -> None:
        if job is not None:
            self._notes(job)
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif job is not None:
            self._line(job)

    def _notes(self, job: Job) -> None:
        """Print new notices, each text once per task: runs of one task often emit the same notice."""
        for text in job.notices:
            if (job.spec.task, text) not in self._noted:
                self._noted.add((job.spec.task, text))
                line = f"{job.spec.task_name}: note: {text}"
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _line(self, job: Job) -> None:
        # The part of a phase after a colon is progress within it, which has a line every few seconds.
        state, now = f"{job.status} {job.phase.partition(':')[0]}", time.monotonic()
        before, when = self._printed.get(job.spec.spec_id, ("", 0.0))
        if state == before and now - when < _PLAIN_EVERY:
            return
        self._printed[job.spec.spec_id] = (state, now)
        cells = [f"{name} {value}" for name, value in _figures(job).items() if value]
        if job.status == "running" and job.phase.startswith("planning"):
            cells.insert(0, job.phase)
        print(
            "  ".join([f"{job.spec.run_name:28}", f"{job.status:9}", *cells, job.message]).rstrip(),
            flush=True,
        )

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("run", no_wrap=True)
        table.add_column("state", no_wrap=True)
        names = ("step", "loss", "metric", "tokens/s", "peak MiB", "left")
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for job in self._jobs:
            figures = _figures(job)
            state = job.phase if job.status == "running" and job.phase else job.status
            table.add_row(
                Text(job.spec.run_name),
                Text(state, _STYLE.get(job.status, "red")),
                *(figures[name] for name in names),
            )
        return table


def _figures(job: Job) -> dict[str, str]:
    train = next((e for e in reversed(job.events) if e["event"] == "train"), None)
    validation = next((e for e in reversed(job.events) if e["event"] == "validation"), None)
    # Events of planning have no memory: it takes place in another process than the training.
    latest = next((e for e in reversed(job.events) if "live" in e), None)
    metrics = validation["metrics"] if validation else {}
    metric = task_kind(job.spec.kind).metric.key
    shown = f"{metric} {metrics[f'val/{metric}']:.4g}" if f"val/{metric}" in metrics else ""
    return {
        "step": f"{train['step']}/{train['steps']}" if train else "",
        "loss": f"{train['metrics']['train/loss']:.3f}" if train else "",
        "metric": shown,
        "tokens/s": f"{train['tok_s']:,.0f}" if train else "",
        "peak MiB": f"{latest['live']['peak_mib']:,.0f}" if latest else "",
        "left": _left(train) if train and job.status == "running" else "",
    }


def _left(train: dict[str, Any]) -> str:
    """Time until training ends, extrapolated from the mean speed; the final evaluation is not included."""
    done, total = train["step"], train["steps"]
    seconds = int(train["seconds"] / done * (total - done))
    return f"{seconds // 60}:{seconds % 60:02d}"


def results_table(rows: Sequence[tuple[RunSpec, dict[str, Any], str]]) -> Table:
    """Table of all runs, failed ones included, with quality, size and cost."""
    table = Table(title="Results", title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    heads = (
        "zero-shot",
        "quality",
        "model MiB",
        "bits",
        "train %",
        "rank",
        "peak MiB",
        "tok/s",
        "plan s",
        "seconds",
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for spec, figures, state in rows:
        state_cell = Text(state, _STYLE.get(state, "red"))
        table.add_row(Text(spec.run_name), state_cell, *_cells(spec.kind, figures))
    return table


def _cells(kind: str, figures: dict[str, Any]) -> list[str]:
    if not figures:
        return []
    metric = task_kind(kind).metric
    tested = (f"zero/{metric.key}", f"eval/{metric.key}")  # a run without a test has neither
    return [
        *(metric.text(figures[key]) if key in figures else "" for key in tested),
        f"{figures['model/mib']:.1f}",
        f"{figures['model/bits']:.2f}",
        f"{figures['lora/percent']:.2f}",
        f"{figures['lora/rank']:.0f}",
        f"{figures['mem/peak_mib']:,.0f}",
        f"{figures['speed/train_tok_s']:,.0f}",
        f"{figures['time/plan_s']:.0f}" if "time/plan_s" in figures else "",
        f"{figures['time/total_s']:.0f}",
    ]
