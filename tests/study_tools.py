"""Run the real command line in processes of its own and read what it left in the store."""

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


def bitrank(*words: str, cwd: Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bitrank", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(*words: str, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bitrank", *words],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(cwd: Path, event: str, count: int = 1, timeout: float = 120) -> Path:
    """The folder of the first run whose events hold ``count`` of ``event``."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for path in (cwd / "runs" / "work").glob("*/events.jsonl"):
            if sum(e["event"] == event for e in read_events(path)) >= count:
                return path.parent
        time.sleep(0.02)
    raise AssertionError(f"no run reached {count} × {event}")


def run_processes(pid: int) -> Iterator[tuple[psutil.Process, list[str]]]:
    """The processes of runs below ``pid``, each with its command line; what ends while it is looked at is
    none.
    """
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie has no command line any more
            words = child.cmdline()
            if "bitrank.run" in words:
                yield child, words


def kill_children_of(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    for child, _ in list(run_processes(process.pid)):
        os.kill(child.pid, number)


def store_runs(cwd: Path, profile: str = "smoke") -> list[dict[str, Any]]:
    """Every run of the store with status, tags, and each metric as (step, value) pairs, straight from SQLite."""
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
    """The points that a run's spec decides: everything but times, speeds and memory."""
    return [point for point in run["points"] if not point[0].startswith(("time/", "speed/", "mem/"))]
