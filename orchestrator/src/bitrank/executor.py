"""Run specs, each in a process of its own, and follow them: the local executor.

The parent holds a lock on each run's folder while it runs, so two invocations never train the same spec. Children end when
the parent does. Events are tailed, logged in batches and shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from filelock import FileLock, Timeout

from bitrank.advice import advise_signal
from bitrank.child import BAD_INPUT, DIVERGED
from bitrank.events import EventTail
from bitrank.logs import Log
from bitrank.specs import RunSpec, write_spec
from bitrank.states import State
from bitrank.tracking import Tracker

_POLL, _FLUSH = 0.2, 1.0  # seconds
_RUN_BYTES = 3 * 2**30  # what a run of profile laptop may take, with room to spare


@dataclass
class Job:
    """One spec on its way through the executor; ``status`` is waiting, running, or how it ended."""

    spec: RunSpec
    folder: Path
    state: State
    status: str = "waiting"
    message: str = ""
    phase: str = ""
    started: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.status == "finished"


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: Log
    tail: EventTail
    lock: FileLock
    pending: list[dict[str, Any]] = field(default_factory=list)
    flushed: float = 0.0


class Interrupted(Exception):
    """The user, or a SIGTERM, stopped the matrix; ``code`` is the exit code that says which."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.code = 128 + signal_number


def run_all(jobs: Sequence[Job], tracker: Tracker, slots: int, changed: Callable[[Job | None], None]) -> None:
    """Run every job, at most ``slots`` at once. ``changed`` is called when a job moved on, and with None at each poll.

    One failing run does not stop the others. Raises :class:`Interrupted` after closing what runs as KILLED.
    """
    waiting, running = deque(jobs), list[_Running]()
    with _signals() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < slots:
                    if (started := _start(waiting.popleft(), tracker)) is not None:
                        running.append(started)
                        changed(started.job)
                for item in list(running):
                    if _follow(item, changed):
                        running.remove(item)
                        changed(item.job)
                changed(None)
                time.sleep(_POLL)
                stop.check()
        except Interrupted:
            for item in running:
                _kill(item)
            raise


def _start(job: Job, tracker: Tracker) -> _Running | None:
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        job.status, job.message = "elsewhere", "another bitrank process is running it"
        return None
    write_spec(job.spec, job.folder / "spec.json")
    log = tracker.open(job.spec, job.state.run_id)
    environment = environment_of(job.spec)
    with (job.folder / "log.txt").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bitrank.child", str(job.folder)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
    job.status, job.started = "running", time.monotonic()
    return _Running(job, process, log, EventTail(job.folder / "events.jsonl"), lock)


def environment_of(spec: RunSpec) -> dict[str, str]:
    """The run's environment: how its C library keeps memory, and how its threads wait.

    Big temporaries would be mapped and unmapped at each step if the heap did not keep them; under a memory limit it must not.
    Threads that wait actively for long crawl as soon as another program wants a core (a hundred times slower was seen), and threads
    that sleep at once lose a third of their speed. oneDNN keeps compiled products of 1,024 shapes unless told otherwise: half a
    megabyte each, and every length of sentence is a shape.
    """
    keep, trim = ("268435456", "1073741824") if spec.memory_limit is None else ("1048576", "16777216")
    heap = {"MALLOC_MMAP_THRESHOLD_": keep, "MALLOC_TRIM_THRESHOLD_": trim, "MALLOC_ARENA_MAX": "1"}
    waiting = {"GOMP_SPINCOUNT": "20000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
    threads = {"OMP_NUM_THREADS": str(spec.threads)} if spec.threads else {}
    return {
        **mps_environment(spec.device),
        **os.environ,
        **heap,
        **waiting,
        **threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def mps_environment(device: str) -> dict[str, str]:
    """What a run on ``device`` needs in its environment before torch is imported: on Apple silicon, operations that MPS lacks run on the
    CPU, with a notice, instead of failing. What the user has set stays."""
    return {"PYTORCH_ENABLE_MPS_FALLBACK": "1"} if _is_apple() and device in {"auto", "mps"} else {}


def choose_slots(specs: Sequence[RunSpec]) -> int:
    """How many runs at once when nobody says: as many as cores and memory carry, if each run's threads are fixed by its spec.

    One run a core is faster than one run on all cores (the README has the figures). Runs that take all threads, or share an
    accelerator, go one by one.
    """
    threads = {spec.threads and spec.threads * spec.processes for spec in specs}
    if None in threads or not threads or _has_accelerator():
        return 1
    cores = psutil.cpu_count(logical=False) or 1
    carried = int(psutil.virtual_memory().available / (_RUN_BYTES * max(spec.processes for spec in specs)))
    return max(1, min(cores // max(thread for thread in threads if thread), carried, len(specs)))


def _has_accelerator() -> bool:
    return any(shutil.which(tool) for tool in ("nvidia-smi", "rocm-smi")) or _is_apple()


def _is_apple() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def _follow(item: _Running, changed: Callable[[Job | None], None]) -> bool:
    """Take in what the run said; True when it has ended and is closed."""
    ended = item.process.poll() is not None  # asked before reading, so that nothing written before the end is missed
    fresh = item.tail.read()
    item.pending += fresh
    for event in fresh:
        item.job.phase = event.get("phase", item.job.phase)
        if "message" in event:
            item.job.notices.append(event["message"])
        if event["event"] in {"train", "validation", "phase"}:
            item.job.events.append(event)
            changed(item.job)
    if item.pending and (ended or time.monotonic() - item.flushed > _FLUSH):
        item.log.events(item.pending)
        item.pending, item.flushed = [], time.monotonic()
    if ended:
        _close(item)
    return ended


def _close(item: _Running) -> None:
    _sweep(item)
    job, code = item.job, item.process.returncode
    failure = _read(job.folder / "failure.json")
    tags = {"exit_code": str(code)}
    if code == 0 and (job.folder / "result.json").exists():
        job.status, status = "finished", "FINISHED"
    elif code < 0:
        job.status, status, job.message = "killed", "KILLED", f"killed by {signal.Signals(-code).name}"
        job.message = _with_advice(job.message, advise_signal(-code, _end_of(job.folder / "log.txt")))
        tags["failure"] = job.message[:500]
    else:
        job.status, status = ("diverged" if code == DIVERGED else "bad input" if code == BAD_INPUT else "failed"), "FAILED"
        job.message = failure.get("message") or f"the process ended with code {code}; see {job.folder / 'log.txt'}"
        job.message = _with_advice(job.message, failure.get("advice"))
        tags["finding" if code == DIVERGED else "failure"] = job.message[:500]
    item.log.close(job.folder, status, tags)
    if status == "FINISHED":
        shutil.rmtree(job.folder / "checkpoint", ignore_errors=True)  # it lies with the run's artifacts now
    item.lock.release()


def _with_advice(message: str, advice: str | None) -> str:
    return f"{message}. What to do: {advice}" if advice else message


def _end_of(path: Path) -> str:
    """The last 20 kB of a log."""
    try:
        return path.read_bytes()[-20_000:].decode(errors="replace")
    except OSError:
        return ""


def _kill(item: _Running) -> None:
    item.process.terminate()
    try:
        item.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        item.process.kill()
        item.process.wait()
    _sweep(item)
    item.job.status, item.job.message = "killed", "stopped; run the same command to continue"
    item.log.close(item.job.folder, "KILLED", {"exit_code": str(item.process.returncode)})
    item.lock.release()


def _sweep(item: _Running) -> None:
    """End what is left of a run's several processes, before its lock is given back. They are a process group of their own."""
    if item.job.spec.processes > 1:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(item.process.pid, signal.SIGKILL)


class _signals:
    """Remember SIGINT and SIGTERM inside the block, for :meth:`check` to raise as :class:`Interrupted` between two polls.

    Raised at once they could strike inside a write to the store, whose own error handling would make something else of them.
    """

    def __enter__(self) -> _signals:
        self._came: int | None = None
        self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        if self._came is not None:
            raise Interrupted(self._came)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._came = number


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
