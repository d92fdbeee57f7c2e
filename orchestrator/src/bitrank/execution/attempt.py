"""One run under way: its process, what it says, and how it ends. Whoever follows it is the one writer of its
record.

Children end when the process that follows them does. Events are tailed, logged in batches and handed on to be
shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitrank.errors import BAD_INPUT, DIVERGED
from bitrank.process.advice import advise_signal
from bitrank.process.environment import run_environment
from bitrank.process.events import EventTail
from bitrank.process.run_folder import result_of
from bitrank.spec.run_spec import RunSpec, write_spec
from bitrank.tracking.base import Log
from bitrank.tracking.run_state import State

_FLUSH = 1.0  # seconds
_LEAST = 2**20  # bytes; with fewer free, a disk counts as full


@dataclass
class Job:
    """One spec on its way through an executor; ``status`` is waiting, running, or how it ended."""

    spec: RunSpec
    folder: Path
    state: State
    status: str = "waiting"
    message: str = ""
    phase: str = ""
    started: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    replaces: State | None = None  # the state of the run to forget, when this job makes it again

    @property
    def done(self) -> bool:
        return self.status == "finished"

    def add_event(self, event: dict[str, Any]) -> bool:
        """Take in what the run said; whether there is something new to show."""
        self.phase = event.get("phase", self.phase)
        if "message" in event:
            self.notices.append(event["message"])
        shown = event["event"] in {"train", "validation", "phase"}
        if shown:
            self.events.append(event)
        return shown or "message" in event


class Attempt:
    """The process of ``job``'s run, started in ``job.folder``, from its start to its closed record in
    ``log``.
    """

    def __init__(self, job: Job, log: Log) -> None:
        self.job, self.ended = job, False
        self._log, self._tail = log, EventTail(job.folder / "events.jsonl")
        self._pending, self._flushed = list[dict[str, Any]](), 0.0
        write_spec(job.spec, job.folder / "spec.json")
        with (job.folder / "log.txt").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bitrank.run", str(job.folder)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=run_environment(job.spec),
                start_new_session=True,
            )  # fmt: skip
        job.status, job.started = "running", time.monotonic()

    def follow(self, at_once: bool = False) -> list[dict[str, Any]]:
        """What the run has said since the last call; it is logged within a second, or ``at_once``. Then
        ``ended`` tells whether that was all, and the run is to be closed."""
        self.ended = (
            self._process.poll() is not None
        )  # asked before reading, so that nothing written before the end is missed
        new_events = self._tail.read()
        self._pending += new_events
        if self._pending and (self.ended or at_once or time.monotonic() - self._flushed > _FLUSH):
            self._log.events(self._pending)
            self._pending, self._flushed = [], time.monotonic()
        return new_events

    def kill(self) -> None:
        """End the process and close the run as KILLED; the next attempt continues it."""
        self.stop()
        self.job.status, self.job.message = "killed", "stopped; run the same command to continue"
        self._log.close(self.job.folder, "KILLED", {"exit_code": str(self._process.returncode)})

    def stop(self) -> None:
        """End the process, and leave the record as it is."""
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._sweep()

    def close(self) -> None:
        """Log how the run ended and what it left."""
        self._sweep()
        job, code = self.job, self._process.returncode
        failure = _read(job.folder / "failure.json")
        tags = {"exit_code": str(code)}
        if code == 0 and result_of(job.folder) is not None:
            job.status, status = "finished", "FINISHED"
        elif code < 0:
            job.status, status, job.message = "killed", "KILLED", f"killed by {signal.Signals(-code).name}"
            job.message = _with_advice(job.message, advise_signal(-code, _end_of(job.folder / "log.txt")))
            tags["failure"] = job.message[:500]
        else:
            job.status, status = (
                ("diverged" if code == DIVERGED else "bad input" if code == BAD_INPUT else "failed"),
                "FAILED",
            )
            job.message = str(failure.get("message") or _without_failure(code, job.folder))
            job.message = _with_advice(job.message, failure.get("advice"))
            tags["finding" if code == DIVERGED else "failure"] = job.message[:500]
        self._log.close(job.folder, status, tags)
        if status == "FINISHED":
            shutil.rmtree(
                job.folder / "checkpoint", ignore_errors=True
            )  # it lies with the run's artifacts now

    def _sweep(self) -> None:
        """End what is left of a run's several processes, before its folder is given back. They are a process
        group of their own.
        """
        if self.job.spec.processes > 1:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _without_failure(code: int, folder: Path) -> str:
    """What to say of a run that left no readable ``failure.json``, which a full disk prevents."""
    if shutil.disk_usage(folder).free < _LEAST:
        return f"the disk of {folder} is full; once that is solved, the same command continues this run"
    return f"the process ended with code {code}; see {folder / 'log.txt'}"


def _with_advice(message: str, advice: str | None) -> str:
    return f"{message}. What to do: {advice}" if advice else message


def _end_of(path: Path) -> str:
    """The last 20 kB of a log."""
    try:
        return path.read_bytes()[-20_000:].decode(errors="replace")
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # absent, torn, or no object
        return {}
