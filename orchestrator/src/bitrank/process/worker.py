"""The first calls of a process that a command starts."""

from __future__ import annotations

from bitrank.process.fast_imports import quiet_libraries
from bitrank.process.lifetime import exit_with_parent


def begin_worker() -> None:
    """End with the parent process, and silence library messages that the user cannot act on."""
    exit_with_parent()
    quiet_libraries()
