"""Errors caused by user input: they end with one clear line and exit code 2, never with a traceback.

An exception class says how a process that it ends exits by its attribute ``exit_code``; each package has such classes of
its own, and none imports another's.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FAILED, BAD_INPUT, DIVERGED = 1, 2, 3  # exit codes of a run's process


class UserError(ValueError):
    """Something asked for cannot be done; the message says what was expected, what came and what to do."""

    exit_code = BAD_INPUT


def exit_code_of(error: BaseException) -> int:
    """The exit code of a process that ``error`` ends."""
    return int(getattr(error, "exit_code", FAILED))


def is_user_error(error: BaseException) -> bool:
    """Whether ``error`` is caused by user input."""
    return isinstance(error, ValueError) and exit_code_of(error) == BAD_INPUT


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """The error for a name that is not among ``known``, with the nearest that are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    listed = (
        f"nearest: {', '.join(near)}; all: {', '.join(names)}"
        if near
        else f"expected one of {', '.join(names)}"
    )
    return UserError(f"unknown {kind} {name!r}; {listed}{hint}")
