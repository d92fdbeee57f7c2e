"""Run the real command line in separate processes and read the results from the store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from bitrank.process.events import read_events

SMOKE = ("matrix", "--profile", "smoke")


def bitrank(*arguments: str, cwd: Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bitrank", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(*arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bitrank", *arguments],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(cwd: Path, event: str, count: int = 1, timeout: float = 120) -> Path:
    """The folder of the first run with ``count`` events of kind ``event``."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for path in (cwd / "runs" / "work").glob("*/events.jsonl"):
            if sum(e["event"] == event for e in read_events(path)) >= count:
                return path.parent
        time.sleep(0.02)
    raise AssertionError(f"no run reached {count} × {event}")


def run_processes(pid: int) -> Iterator[tuple[psutil.Process, list[str]]]:
    """Processes of runs below ``pid`` with their command lines; skips those that end meanwhile."""
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie has no command line
            command = child.cmdline()
            if "bitrank.run" in command:
                yield child, command


def kill_children_of(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    for child, _ in list(run_processes(process.pid)):
        os.kill(child.pid, number)


def store_runs(cwd: Path, profile: str = "smoke") -> list[dict[str, Any]]:
    """Every run of the store with status, tags, params and metric points, read directly from SQLite."""
    import sqlite3

    with sqlite3.connect(cwd / "runs" / "mlflow.db") as db:
        runs = db.execute(
            "SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time"
        ).fetchall()
        return [
            {
                "id": run_id,
                "name": name,
                "status": status,
                "tags": dict(db.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [run_id])),
                "params": dict(db.execute("SELECT key, value FROM params WHERE run_uuid = ?", [run_id])),
                "points": db.execute(
                    "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step", [run_id]
                ).fetchall(),
            }
            for run_id, name, status in runs
        ]


def numbers(run: dict[str, Any]) -> list[tuple[str, int, float]]:
    """The points determined by the run's spec: all but times, speeds and memory."""
    return [point for point in run["points"] if not point[0].startswith(("time/", "speed/", "mem/"))]
