"""``bitrank ui``: serve the MLflow UI on 127.0.0.1 and print links to the saved views."""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import os
import socket
import subprocess
import sys
from typing import Any

import psutil

from bitrank.cli.arguments import location, whole
from bitrank.cli.options import add_command
from bitrank.errors import UserError
from bitrank.spec.profiles import find_profile

UI = """examples:
  bitrank ui
  bitrank ui --port 5001 --store /data/runs"""

HOST = "127.0.0.1"
_POLL_SECONDS = 0.2
_SHUTDOWN_SECONDS = 10.0  # time for the server to end before it is killed


def add_ui(commands: Any) -> None:
    """Add the command ``ui``."""
    ui = add_command(commands, "ui", "open the MLflow UI on 127.0.0.1 with the saved views", UI, open_ui)
    ui.add_argument("--store", type=location, default="runs", help="folder of the store (default: runs)")
    ui.add_argument("--profile", default="laptop", help="profile of the linked experiment (default: laptop)")
    ui.add_argument("--port", type=whole(1, 65535), default=5000, help="port to listen on (default: 5000)")
    ui.add_argument(
        "--host",
        default=HOST,
        help="address to listen on; 0.0.0.0 inside a container only (default: 127.0.0.1)",
    )


def serve(store: str, profile: str, port: int, host: str = HOST) -> int:
    """Serve ``store`` until stopped. Raises :class:`UserError` if the port is in use or no store exists.

    A ``host`` other than loopback is meant for containers, whose ports the engine publishes: MLflow has no
    authentication.
    """
    from bitrank.tracking.mlflow_tracker import Tracker
    from bitrank.tracking.mlflow_views import experiment_views, saved_task_views, view_path
    from bitrank.tracking.store import Store, open_store

    parsed = Store.parse(store)
    if parsed.database is None:
        raise UserError(f"{parsed.shown} is a server with its own UI; open it in a browser")
    if not parsed.database.exists():
        database = parsed.database
        raise UserError(f"there is no store at {database}; run `make matrix` first, or give --store")
    _check_port(host, port)
    tracker = Tracker(open_store(store), store, profile)
    experiment_id = tracker.experiment_id
    tags = tracker.client.get_experiment(experiment_id).tags
    for view in (*experiment_views(), *saved_task_views(tags)):
        print(f"{view.name + ':':26} http://{HOST}:{port}{view_path(experiment_id, view)}", flush=True)
    # Without job execution the server is 2 processes and 0.5 GB instead of 10 and 2.3 GB.
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--backend-store-uri", parsed.uri, "--artifacts-destination", str(parsed.artifact_uri)]
    command += ["--host", host, "--port", str(port)]
    if not _is_loopback(host):
        print(
            f"bitrank: --host {host} opens a server without login: every client that reaches port {port} of "
            "this machine can read, change and delete the runs; omit --host, or allow only trusted machines",
            file=sys.stderr,
            flush=True,
        )
    return _run_server(command, environment)


def _run_server(command: list[str], environment: dict[str, str]) -> int:
    """Run the server until it exits, or until SIGINT or SIGTERM; then end its worker processes too."""
    from bitrank.execution.interrupts import Interrupted, Signals

    # In its own session, so that Ctrl-C reaches only this process, which then ends the server's processes.
    with Signals() as stop, subprocess.Popen(command, env=environment, start_new_session=True) as server:
        try:
            while True:
                try:
                    return server.wait(timeout=_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    stop.check()
        except Interrupted as interrupted:
            return interrupted.code
        finally:
            _end_tree(server.pid)


def _end_tree(pid: int) -> None:
    """End the process ``pid`` and all its descendants."""
    try:
        root = psutil.Process(pid)
        processes = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_SHUTDOWN_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _is_loopback(host: str) -> bool:
    """Whether ``host`` is reachable only from this machine; false for a name that does not resolve."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def _check_port(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise UserError(f"--port must be between 1 and 65535, got {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(
            f"--host {host} is not an address of this machine; expected one such as {HOST}"
        ) from error
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(
                    f"--host {host} is not an address of this machine; expected one such as {HOST}"
                ) from error
            raise UserError(
                f"port {port} is in use; give another with --port (make ui PORT={port + 1})"
            ) from error


def open_ui(arguments: argparse.Namespace) -> int:
    return serve(arguments.store, find_profile(arguments.profile).name, arguments.port, arguments.host)
