"""Servers of a multi-machine study: a temporary Postgres, and MLflow's tracking server on a database.

Both listen on 127.0.0.1 only, and end with the context that started them.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

WORKERS = 2  # as in docker/compose.yaml


@dataclass(frozen=True)
class Server:
    """A started server: its URL and process id."""

    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """Processor time of the process and its descendants, including those that have been waited for."""
        parent = psutil.Process(self.pid)
        return sum(sum(process.cpu_times()[:4]) for process in [parent, *parent.children(recursive=True)])

    def resident_mib(self) -> float:
        """Resident memory of the process and its descendants; shared pages count once per process."""
        parent = psutil.Process(self.pid)
        return (
            sum(process.memory_info().rss for process in [parent, *parent.children(recursive=True)]) / 2**20
        )


def postgres_programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``; None if Postgres is not installed."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    folders = [Path(found).resolve().parent] if found else debian
    return folders[-1] if folders and (folders[-1] / "postgres").exists() else None


@contextmanager
def postgres(programs: Path) -> Iterator[Server]:
    """A new cluster with default settings, and its first database; root runs it as the user ``postgres``."""
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    user = "postgres" if as_user else pwd.getpwuid(os.geteuid()).pw_name
    folder, port = Path(tempfile.mkdtemp(prefix="bitrank-postgres-")), free_port()
    try:
        if as_user:
            shutil.chown(folder, "postgres")
        _run(
            [
                *as_user,
                programs / "initdb",
                "-D",
                folder / "data",
                "-U",
                user,
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
            ]
        )
        command = [
            *as_user,
            programs / "postgres",
            "-D",
            folder / "data",
            "-p",
            port,
            "-k",
            folder,
            "-c",
            "listen_addresses=127.0.0.1",
        ]
        with _process(list(map(str, command)), folder / "log") as process:
            _wait_until(lambda: _accepts(port), process, folder / "log")
            yield Server(f"postgresql+psycopg2://{user}@127.0.0.1:{port}/postgres", process.pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def tracking_server(database: str, artifacts: Path, workers: int = WORKERS) -> Iterator[Server]:
    """MLflow's server on ``database``, started as in docker/compose.yaml."""
    port, log = free_port(), artifacts.parent / "server.log"
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
    command += ["--artifacts-destination", str(artifacts)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    with _process(
        command, log, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    ) as process:
        _wait_until(lambda: _is_healthy(f"http://127.0.0.1:{port}/health"), process, log)
        yield Server(f"http://127.0.0.1:{port}", process.pid)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _process(
    command: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
    try:
        yield process
    finally:
        family = (
            [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            if process.poll() is None
            else []
        )
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=20)
        for survivor in alive:
            survivor.kill()
        process.wait()


def _run(command: Sequence[object]) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True, cwd="/")


def _wait_until(ready: object, process: subprocess.Popen[bytes], log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"{process.args!r} does not answer; its log ends with: {log.read_text()[-500:]}"
            )
        time.sleep(0.2)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
