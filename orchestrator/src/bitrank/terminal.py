"""The console that prints tables and messages."""

from __future__ import annotations

import sys

from rich.console import Console


def console() -> Console:
    """A console that does not wrap tables in a pipe."""
    return Console(width=None if sys.stdout.isatty() else 160)
