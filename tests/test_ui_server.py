"""`bitrank ui` as a process: it warns about non-local hosts, and its server ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from bitrank.tracking.store import open_store


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    open_store(str(folder / "runs"))
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(cwd: Path, port: int, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bitrank", "ui", "--profile", "smoke", "--port", str(port), *arguments],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=(cwd / "stderr.txt").open("w"),
        text=True,
        start_new_session=True,
    )


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except OSError:
        return False


def _wait_for_server(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not _answers(port):
        assert process.poll() is None, "bitrank ui ended by itself"
        assert time.monotonic() < deadline, "the server did not come up"
        time.sleep(0.3)


def _has_server(pid: int) -> bool:
    """Whether process ``pid`` has started MLflow; its other children, such as git, end by themselves."""
    found = False
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found = found or "mlflow" in child.cmdline()
    return found


@pytest.mark.parametrize(
    ("number", "host"), [(signal.SIGTERM, "127.0.0.1"), (signal.SIGINT, "0.0.0.0"), (signal.SIGTERM, "early")]
)
def test_signal_ends_the_server_with_the_command(number: signal.Signals, host: str, cwd: Path) -> None:
    port = _free_port()
    process = _start(cwd, port, *(() if host == "early" else ("--host", host)))
    if host == "early":  # the server exists, and does not answer yet
        deadline = time.monotonic() + 120
        while not _has_server(process.pid):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    else:
        _wait_for_server(port, process)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    os.kill(process.pid, number)
    assert process.wait(timeout=60) == 128 + number
    assert [one for one in below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert not _answers(port)
    output = (cwd / "stderr.txt").read_text()
    assert ("without login" in output) == (host == "0.0.0.0")
    assert "Traceback" not in output.split("INFO")[0]
