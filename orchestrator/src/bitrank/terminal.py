"""The console that prints tables and messages, and the end of a command whose reader is gone."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from rich.console import Console

READER_GONE = 128 + signal.SIGPIPE  # exit code of programs that end on a closed pipe


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error again, of whose handler rich calls this; rich itself would exit with code 1."""
        raise


def console() -> Console:
    """A console that does not wrap tables in a pipe."""
    return _Console(width=None if sys.stdout.isatty() else 160)


def until_reader_is_gone(command: Callable[[], int]) -> int:
    """Run ``command`` and write all its output; returns its exit code, or :data:`READER_GONE`.

    Readers such as ``head`` close their pipe before the output ends. A broken pipe of another cause, such as
    one to another process, is raised.
    """
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # an error at the exit of the interpreter could not be handled
    except BrokenPipeError:
        closed = closed_streams()
        if not closed:
            raise
        for stream in closed:
            _discard(stream)
        return READER_GONE


def closed_streams() -> list[TextIO]:
    """Standard output and error, as far as their readers are gone."""
    return [stream for stream in (sys.stdout, sys.stderr) if _reader_is_gone(stream)]


def _reader_is_gone(stream: TextIO) -> bool:
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # a stream of another program, such as a notebook's
        return False
    pipe = select.poll()
    pipe.register(number, 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in pipe.poll(0))


def _discard(stream: TextIO) -> None:
    """Send what ``stream`` still holds to nowhere: the interpreter writes it at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    with contextlib.suppress(OSError):
        stream.flush()
