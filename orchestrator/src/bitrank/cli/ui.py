"""``bitrank ui``: the MLflow UI on 127.0.0.1, opened on the saved views."""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import os
import socket
import subprocess
import sys

import psutil

from bitrank.errors import UserError
from bitrank.spec.profiles import find_profile

UI = """examples:
  bitrank ui
  bitrank ui --port 5001 --store /data/runs"""

HOST = "127.0.0.1"
_POLL, _PATIENCE = 0.2, 10.0  # seconds; the latter is how long the server may take to end


def serve(store: str, profile: str, port: int, host: str = HOST) -> int:
    """Serve ``store`` until stopped. Raises :class:`UserError` when the port is taken or there is no store.

    Another ``host`` than this machine's own is for containers, whose ports the engine publishes; MLflow knows
    no passwords.
    """
    from bitrank.tracking.mlflow_tracker import Tracker
    from bitrank.tracking.mlflow_views import experiment_views, saved_task_views, view_path
    from bitrank.tracking.store import Store, open_store

    place = Store.parse(store)
    if place.database is None:
        raise UserError(f"{place.shown} is a server with a UI of its own; open it in a browser")
    if not place.database.exists():
        database = place.database
        raise UserError(f"there is no store at {database} yet; run `make matrix` first, or give --store")
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
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", place.uri,
               "--artifacts-destination", str(place.artifact_uri), "--host", host, "--port", str(port), "--workers", "1"]  # fmt: skip
    if not _is_loopback(host):
        print(
            f"bitrank: --host {host} opens a server without login: everybody who reaches port {port} of this machine "
            f"can read, change and delete the runs; leave --host out, or let only trusted machines through",
            file=sys.stderr,
            flush=True,
        )
    return _follow(command, environment)


def _follow(command: list[str], environment: dict[str, str]) -> int:
    """Run the server until it ends by itself, or until SIGINT or SIGTERM; its worker processes end with it."""
    from bitrank.execution.interrupts import Interrupted, Signals

    # A session of its own: Ctrl-C reaches this process alone, which then ends all of the server in order.
    with Signals() as stop, subprocess.Popen(command, env=environment, start_new_session=True) as server:
        try:
            while True:
                try:
                    return server.wait(timeout=_POLL)
                except subprocess.TimeoutExpired:
                    stop.check()
        except Interrupted as interrupted:
            return interrupted.code
        finally:
            _end(server.pid)


def _end(pid: int) -> None:
    """End the process ``pid`` and all below it."""
    try:
        root = psutil.Process(pid)
        processes = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_PATIENCE)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine alone. A name that does not resolve is not taken for
    one.
    """
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
            f"--host {host} is no address of this machine; expected one such as {HOST}"
        ) from error
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(
                    f"--host {host} is no address of this machine; expected one such as {HOST}"
                ) from error
            raise UserError(
                f"port {port} is in use; give another with --port (make ui PORT={port + 1})"
            ) from error


def open_ui(arguments: argparse.Namespace) -> int:
    return serve(arguments.store, find_profile(arguments.profile).name, arguments.port, arguments.host)
