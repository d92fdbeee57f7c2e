"""The console that prints tables and messages, and the end of a command whose output cannot be written."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from rich.console import Console

from bitrank.errors import FAILED

READER_GONE = 128 + signal.SIGPIPE  # exit code of programs that end on a closed pipe


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error again, of whose handler rich calls this; rich itself would exit with code 1."""
        raise


def console() -> Console:
    """A console that does not wrap tables in a pipe."""
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    return _Console(width=None if on_terminal else 160)


class _Unwritten(Exception):
    """The output cannot be written, for a cause other than its reader."""


def until_reader_is_gone(command: Callable[[], int]) -> int:
    """Run ``command`` and write all its output; returns its exit code, or :data:`READER_GONE`.

    Readers such as ``head`` close their pipe before the output ends. A broken pipe of another cause, such as
    one to another process, is raised. Output that a full disk does not take is reported, and returns
    :data:`~bitrank.errors.FAILED`; a command that failed for itself has reported it and keeps its code.
    """
    _replace_absent_streams()
    code = 0
    try:
        try:
            code = command()
        finally:
            _write_all()
    except _Unwritten as failure:
        if not code:
            _report(f"bitrank: cannot write the output: {failure}; send it to another file or to a pipe")
        return code or FAILED
    except BrokenPipeError:
        closed = closed_streams()
        if not closed:
            raise
        for stream in closed:
            _discard(stream)
        return READER_GONE
    return code


def _replace_absent_streams() -> None:
    """Open the streams that the shell closed (``>&-``), which are None, to nowhere.

    Libraries use them without a check, and ``print(file=None)`` would write errors to standard output.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _write_all() -> None:
    """Write what standard output holds: an error at the exit of the interpreter could not be handled."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout)
        raise _Unwritten(error.strerror or str(error)) from error


def _report(line: str) -> None:
    try:
        print(line, file=sys.stderr)
    except OSError:  # both streams may go to the same full disk
        _discard(sys.stderr)


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
    with contextlib.suppress(OSError):
        os.dup2(nowhere, stream.fileno())
        stream.flush()
    os.close(nowhere)
