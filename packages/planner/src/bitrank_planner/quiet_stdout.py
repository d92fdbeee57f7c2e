"""Suppression of standard output from compiled libraries."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced() -> Iterator[None]:
    """Discard everything that compiled code prints to standard output inside the block.

    HiGHS as shipped with scipy prints a debugging line, which would corrupt a plan printed as JSON. Python
    output outside the block is not affected; other threads should not print inside it.
    """
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
            ctypes.CDLL(None).fflush(
                None
            )  # stdio buffers output to a pipe; flush it before stdout is restored
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
