"""Libraries written in C that print where only the caller should."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced() -> Iterator[None]:
    """Drop what compiled code prints on standard output inside the block: HiGHS as scipy ships it leaves a line of debugging, and
    whoever plans may be printing JSON. Python's own output is not touched outside the block; other threads should not print inside it."""
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # the C library keeps lines for a pipe until it has many
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
