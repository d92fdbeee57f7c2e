"""Launcher of a run in several processes on one machine: starts all ranks, and ends all when one fails.

``python -m bitrank.run FOLDER`` becomes this launcher if the spec has ``processes`` above 1. Its parent sees
one process with the status of the whole run. The launcher does not import torch, so it takes little memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitrank.process.cores import usable_cores
from bitrank.process.lifetime import parent_environment

_POLL = 0.05  # seconds


def launch(folder: Path, count: int) -> int:
    """Run the ``count`` ranks of the run in ``folder`` and return the exit code of the whole run.

    The first failure of a rank is the failure of the run: its ``failure.json`` is kept. If a signal killed
    the rank, the same signal ends this process.
    """
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    with tempfile.TemporaryDirectory(prefix="bitrank-") as scratch:
        ranks = [_start(folder, rank, count, Path(scratch) / "rendezvous") for rank in range(count)]
        while not received and not _failed(ranks) and any(rank.poll() is None for rank in ranks):
            time.sleep(_POLL)
        failed = _failed(ranks)
        for rank in ranks:
            rank.kill()
            rank.wait()
    killed = received or [-code for code in failed.values() if code < 0]
    if killed:
        _end_by_signal(folder, killed[0])
    return _settle(folder, failed)


def failure_path(folder: Path, rank: int) -> Path:
    """The file with the reason why a rank failed."""
    return folder / ("failure.json" if rank == 0 else f"failure-{rank}.json")


def _start(folder: Path, rank: int, count: int, rendezvous_file: Path) -> subprocess.Popen[bytes]:
    failure_path(folder, rank).unlink(missing_ok=True)
    command = [sys.executable, "-m", "bitrank.run", str(folder), str(rank), str(count), str(rendezvous_file)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=_environment(count) | parent_environment())


def _environment(count: int) -> dict[str, str]:
    """Environment of a rank: loopback communication only, and an equal share of the cores by default."""
    loopback = "lo" if sys.platform == "linux" else "lo0"
    cores = max(1, usable_cores() // count)
    return {
        "OMP_NUM_THREADS": str(cores),
        **os.environ,
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Exit codes other than 0, by rank."""
    return {number: code for number, rank in enumerate(ranks) if (code := rank.poll())}


def _settle(folder: Path, failed: Mapping[int, int]) -> int:
    """Keep the earliest failure; the later ones follow from it, because their connection breaks."""
    written = {
        rank: path.stat().st_mtime_ns for rank in failed if (path := failure_path(folder, rank)).exists()
    }
    cause = min(written, key=lambda rank: written[rank], default=next(iter(failed), None))
    if cause in written:
        failure_path(folder, cause).replace(folder / "failure.json")
    for other in folder.glob("failure-*.json"):
        other.unlink()
    return 0 if cause is None else failed[cause]


def _end_by_signal(folder: Path, number: int) -> None:
    """End by the signal that ended the rank, without the follow-up failures of the other ranks."""
    for path in folder.glob("failure*.json"):
        path.unlink()
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
