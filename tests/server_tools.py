"""MLflow tracking servers on 127.0.0.1 over SQLite or Postgres, and queries of their databases."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def tracking_server(database: str, folder: Path) -> Iterator[str]:
    """The URL of a server with its tables at the URI ``database`` and its artifacts in ``folder``."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", database),
        *("--artifacts-destination", str(folder / "artifacts")),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--workers", "1"),
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(360):
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server did not come up: {log.read_text()[-2000:]}")


@contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database in a new Postgres server on 127.0.0.1; skips without Postgres."""
    pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
    programs = max(
        Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: float(path.parent.name)
    )
    programs = programs or (Path(found).parent if (found := shutil.which("initdb")) else None)
    if programs is None:
        pytest.skip("needs Postgres: apt-get install postgresql")
    user: dict[str, Any] = {}
    # pytest's own folders are not accessible to other users, and Postgres refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="bitrank-postgres-"))
    if os.getuid() == 0:
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(folder, "postgres", "postgres")
    data, port = folder / "data", free_port()
    initdb = [
        *(programs / "initdb", "--pgdata", data),
        *("--username", "bitrank"),
        *("--auth", "trust"),
        *("--encoding", "UTF8"),
        "--no-sync",
    ]
    subprocess.run(initdb, cwd=folder, check=True, capture_output=True, **user)
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories="
    control = [programs / "pg_ctl", "--pgdata", data, "--wait"]
    subprocess.run(
        [*control, "--log", folder / "postgres.log", "-o", options, "start"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        **user,
    )
    try:
        yield f"postgresql+psycopg2://bitrank@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [*control, "--mode", "immediate", "stop"],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            **user,
        )
        shutil.rmtree(folder)


def stored_runs(database: str) -> list[dict[str, Any]]:
    """Every run in the tables at ``database``, like :func:`study_tools.store_runs` for a SQLite file."""
    from sqlalchemy import create_engine, text

    engine = create_engine(database)
    with engine.connect() as db:

        def rows(sql: str, run_id: str) -> list[Any]:
            return [tuple(row) for row in db.execute(text(sql), {"run": run_id})]

        runs = db.execute(
            text(
                "SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time"
            )
        ).fetchall()
        found = [
            {
                "id": run_id,
                "name": name,
                "status": status,
                "tags": dict(rows("SELECT key, value FROM tags WHERE run_uuid = :run", run_id)),
                "points": sorted(rows("SELECT key, step, value FROM metrics WHERE run_uuid = :run", run_id)),
            }
            for run_id, name, status in runs
        ]
    engine.dispose()
    return found


def leases(database: str) -> list[str]:
    from sqlalchemy import create_engine, text

    engine = create_engine(database)
    with engine.connect() as db:
        held = [
            key for (key,) in db.execute(text("SELECT key FROM experiment_tags WHERE key LIKE 'lease.%'"))
        ]
    engine.dispose()
    return held
