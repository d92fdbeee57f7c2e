"""``bitrank ui``: the MLflow UI on 127.0.0.1, opened on the saved views."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys

from bitrank.errors import UserError
from bitrank.spec.profiles import find_profile

UI = """examples:
  bitrank ui
  bitrank ui --port 5001 --store /data/runs"""

HOST = "127.0.0.1"


def serve(store: str, profile: str, port: int, host: str = HOST) -> int:
    """Serve ``store`` until stopped. Raises :class:`UserError` when the port is taken or there is no store.

    Another ``host`` than this machine's own is for containers, whose ports the engine publishes; MLflow knows no passwords.
    """
    from bitrank.tracking.mlflow_tracker import Tracker
    from bitrank.tracking.mlflow_views import VIEWS, view_path
    from bitrank.tracking.store import Store, open_store

    place = Store.parse(store)
    if place.database is None:
        raise UserError(f"{place.uri} is a server with a UI of its own; open it in a browser")
    if not place.database.exists():
        database = place.database
        raise UserError(f"there is no store at {database} yet; run `make matrix` first, or give --store")
    _check_port(host, port)
    experiment_id = Tracker(open_store(store), store, profile).experiment_id
    for view in VIEWS:
        print(f"{view.name + ':':26} http://{HOST}:{port}{view_path(experiment_id, view)}", flush=True)
    # Without job execution the server is 2 processes and 0.5 GB instead of 10 and 2.3 GB.
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", place.uri,
               "--artifacts-destination", str(place.artifact_uri), "--host", host, "--port", str(port), "--workers", "1"]  # fmt: skip
    return subprocess.run(command, env=environment, check=False).returncode


def _check_port(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise UserError(f"--port must be between 1 and 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} is in use; give another with --port (make ui PORT={port + 1})"
            ) from error


def open_ui(arguments: argparse.Namespace) -> int:
    return serve(arguments.store, find_profile(arguments.profile).name, arguments.port, arguments.host)
