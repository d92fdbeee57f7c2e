"""Run inside the image by docker/verify.sh: what a container of ours must not be able to do, tried. Exit code
1 when it can.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path


def holes() -> Iterator[str]:
    """Each wall that does not stand, in words; what stands is printed."""
    if os.getuid() == 0:
        yield "it runs as root"
    print(f"user {os.getuid()}:{os.getgid()}, home {Path.home()}")
    if not os.statvfs("/").f_flag & os.ST_RDONLY:
        yield "the root file system can be written"
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
        yield "the network answers"
    except OSError as error:
        print(
            f"network: {error.strerror or error}; interfaces: {', '.join(name for _, name in socket.if_nameindex())}"
        )
    if {name for _, name in socket.if_nameindex()} - {"lo"}:
        yield "there are network interfaces beside the loopback"


found = list(holes())
print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
sys.exit(bool(found))
