"""A run in several processes on one machine: one program starts them, waits, and ends them all when one of
them ends badly.

``python -m bitrank.run FOLDER`` of a run with ``processes`` above 1 becomes this program; whoever started it
sees one process with the run's true end, and needs to know nothing of ranks. It imports no torch and takes
next to no memory.
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

_POLL = 0.05  # seconds


def launch(folder: Path, count: int) -> int:
    """Run the ``count`` ranks of the run in ``folder``; the exit code that tells of all.

    What ended a rank first is the run's failure: its ``failure.json`` is kept, and a signal that killed it
    ends this process too.
    """
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    with tempfile.TemporaryDirectory(prefix="bitrank-") as scratch:
        ranks = [_start(folder, rank, count, Path(scratch) / "rendezvous") for rank in range(count)]
        while not came and not _failed(ranks) and any(rank.poll() is None for rank in ranks):
            time.sleep(_POLL)
        failed = _failed(ranks)
        for rank in ranks:
            rank.kill()
            rank.wait()
    killed = came or [-code for code in failed.values() if code < 0]
    if killed:
        _end_by_signal(folder, killed[0])
    return _settle(folder, failed)


def failure_path(folder: Path, rank: int) -> Path:
    """Where a rank says why it failed."""
    return folder / ("failure.json" if rank == 0 else f"failure-{rank}.json")


def _start(folder: Path, rank: int, count: int, rendezvous_file: Path) -> subprocess.Popen[bytes]:
    failure_path(folder, rank).unlink(missing_ok=True)
    command = [sys.executable, "-m", "bitrank.run", str(folder), str(rank), str(count), str(rendezvous_file)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=_environment(count))


def _environment(count: int) -> dict[str, str]:
    """Ranks speak over the loopback interface alone, and share the machine's cores out unless their number is
    given.
    """
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
    """Keep the failure that came first: the others fail because of it, their connection gone."""
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
    """End as the rank ended; what the others said of a lost connection is not the cause."""
    for path in folder.glob("failure*.json"):
        path.unlink()
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
