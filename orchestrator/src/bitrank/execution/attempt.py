"""The process of one run: start it, read its events, and log how it ends.

A planned arm has two processes: one that makes its plan, if the run's folder has none, then the run itself.
The process that follows a run is the only writer of its record; if it ends, the run's process ends too.
Events are logged in batches and returned for display.
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
from bitrank.process.lifetime import parent_environment
from bitrank.process.run_folder import has_requested_plan, result_of, write_code
from bitrank.spec.run_spec import RunSpec, write_spec
from bitrank.tracking.base import Log
from bitrank.tracking.run_state import State, code_of

_FLUSH_SECONDS = 1.0
_MIN_FREE_BYTES = 2**20  # a disk with less free space counts as full
_FAILURES = {DIVERGED: "diverged", BAD_INPUT: "bad input"}  # status by exit code; others are "failed"


@dataclass
class Job:
    """One spec in an executor.

    ``status`` is ``waiting``, ``running``, ``locked`` (another process runs it), or how the run ended.
    """

    spec: RunSpec
    folder: Path
    state: State
    status: str = "waiting"
    message: str = ""
    phase: str = ""
    started: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    replaces: State | None = None  # state of the stored run that this job repeats and replaces

    @property
    def done(self) -> bool:
        return self.status == "finished"

    def add_event(self, event: dict[str, Any]) -> bool:
        """Update the job with ``event``; returns whether the display changes."""
        self.phase = event.get("phase", self.phase)
        if "message" in event:
            self.notices.append(event["message"])
        shown = event["event"] in {"train", "validation", "phase"}
        if shown:
            self.events.append(event)
        return shown or "message" in event


class Attempt:
    """The processes of ``job``'s run in ``job.folder``, until its record in ``log`` is closed."""

    def __init__(self, job: Job, log: Log) -> None:
        self.job, self.ended = job, False
        self._log, self._tail = log, EventTail(job.folder / "events.jsonl")
        self._pending, self._flushed = list[dict[str, Any]](), 0.0
        write_spec(job.spec, job.folder / "spec.json")
        write_code(job.folder, code_of(job.spec))
        self._next_programs = _programs(job)
        self._process = self._start(self._next_programs.pop(0))
        job.status, job.started = "running", time.monotonic()

    def follow(self, at_once: bool = False) -> list[dict[str, Any]]:
        """Return the events since the last call, and log them within a second, or ``at_once``.

        Sets ``ended`` if the process has ended and these were the last events; then call :meth:`close`.
        """
        # Polled before reading, so that no event that was written before the end is missed.
        code = self._process.poll()
        if code == 0 and self._next_programs:
            self._process = self._start(self._next_programs.pop(0))
            code = None
        self.ended = code is not None
        new_events = self._tail.read()
        self._pending += new_events
        is_due = time.monotonic() - self._flushed > _FLUSH_SECONDS
        if self._pending and (self.ended or at_once or is_due):
            self._log.events(self._pending)
            self._pending, self._flushed = [], time.monotonic()
        return new_events

    def _start(self, program: str) -> subprocess.Popen[bytes]:
        with (self.job.folder / "log.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", program, str(self.job.folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=run_environment(self.job.spec) | parent_environment(),
                start_new_session=True,
            )

    def kill(self) -> None:
        """End the process and close the run as KILLED; the next attempt continues it."""
        self.stop()
        self.job.status, self.job.message = "killed", "stopped; run the same command to continue"
        self._log.close(self.job.folder, "KILLED", {"exit_code": str(self._process.returncode)})

    def stop(self) -> None:
        """End the process without changing the record."""
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._kill_process_group()

    def close(self) -> None:
        """Log the status, figures and files of the ended run."""
        self._kill_process_group()
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
            job.status, status = _FAILURES.get(code, "failed"), "FAILED"
            job.message = str(failure.get("message") or _without_failure(code, job.folder))
            job.message = _with_advice(job.message, failure.get("advice"))
            tags["finding" if code == DIVERGED else "failure"] = job.message[:500]
        self._log.close(job.folder, status, tags)
        if status == "FINISHED":
            # The run's artifacts contain the checkpoint now.
            shutil.rmtree(job.folder / "checkpoint", ignore_errors=True)

    def _kill_process_group(self) -> None:
        """Kill the remaining ranks of a run of several processes before its folder is unlocked."""
        if self.job.spec.processes > 1:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _programs(job: Job) -> list[str]:
    """The modules whose programs execute the run, one after the other."""
    needs_plan = job.spec.plan_request is not None and not has_requested_plan(job.folder)
    return ["bitrank.planning", "bitrank.run"] if needs_plan else ["bitrank.run"]


def _without_failure(code: int, folder: Path) -> str:
    """The message for a run without a readable ``failure.json``; a full disk can be the reason."""
    if shutil.disk_usage(folder).free < _MIN_FREE_BYTES:
        return f"the disk of {folder} is full; once that is solved, the same command continues this run"
    return f"the process ended with code {code}; see {folder / 'log.txt'}"


def _with_advice(message: str, advice: str | None) -> str:
    return f"{message}. What to do: {advice}" if advice else message


def _end_of(path: Path) -> str:
    """Read the last 20 kB of a log."""
    try:
        return path.read_bytes()[-20_000:].decode(errors="replace")
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # missing, truncated, or not an object
        return {}
