"""Health check of the image: query the UI or tracking server that the container was started for.

A container that trains has no server and is healthy while it runs. Exit code 0 or 1, as engines expect.
"""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

_SERVER_COMMANDS = {"ui", "server"}  # bitrank ui, mlflow server


def port_served(arguments: Sequence[str]) -> int | None:
    """The port on which the command line ``arguments`` listens; None if it starts no server."""
    command = next((place for place, word in enumerate(arguments[:8]) if word in _SERVER_COMMANDS), None)
    if command is None:
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=5000)
    return int(parser.parse_known_args(arguments[command:])[0].port)


def answers(port: int) -> bool:
    """Whether MLflow on ``port`` of this container reports that it is healthy."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=4) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> int:
    """Read the command line of the container's first process and query its server."""
    arguments = Path("/proc/1/cmdline").read_bytes().decode(errors="replace").split("\0")
    port = port_served(arguments)
    return 0 if port is None or answers(port) else 1


if __name__ == "__main__":
    sys.exit(main())
