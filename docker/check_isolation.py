"""Check a container's isolation from inside; docker/verify.sh runs it. Exit code 1 if a check fails."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path


def failed_checks() -> Iterator[str]:
    """Failed checks; passed ones are printed."""
    if os.getuid() == 0:
        yield "it runs as root"
    print(f"user {os.getuid()}:{os.getgid()}, home {Path.home()}")
    if not os.statvfs("/").f_flag & os.ST_RDONLY:
        yield "the root file system is writable"
    for place in ("/etc/new", "/opt/bitrank/new", "/new"):
        try:
            Path(place).write_text("")
            yield f"{place} was written"
        except OSError as error:
            print(f"writing {place}: {error.strerror}")
    for place in ("/cache/new", "/study/new", "/study/runs/new", "/study/results/new", "/tmp/new"):
        Path(place).write_text("")
        Path(place).unlink()
    print("writing /cache, /study, /study/runs, /study/results, /tmp: works")
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=3)
        yield "the network is reachable"
    except OSError as error:
        interfaces = ", ".join(name for _, name in socket.if_nameindex())
        print(f"network: {error.strerror or error}; interfaces: {interfaces}")
    if {name for _, name in socket.if_nameindex()} - {"lo"}:
        yield "there are network interfaces beside the loopback"


failed = list(failed_checks())
print(*failed, sep="\n", end="\n" if failed else "", file=sys.stderr)
sys.exit(bool(failed))
