"""Bad words from a user, told apart from broken code: they end with a clear line and exit code 2, never with a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SPEAK_TO_THE_USER = {
    "UserError",
    "DataError",
    "PlanError",
    "QuantError",
    "AdapterError",
    "TrainError",
    "AnalysisError",
}


class UserError(ValueError):
    """Something asked for cannot be done; the message says what was expected, what came and what to do."""


def is_user_error(error: BaseException) -> bool:
    """Whether ``error`` speaks to the user. Each package has its own ``…Error(ValueError)`` for that; none imports another's."""
    return any(kind.__name__ in _SPEAK_TO_THE_USER for kind in type(error).__mro__)


def shortened(value: object, most: int = 60) -> str:
    """``value`` for a message: its ``repr``, cut when it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits
        text = "a number of more than 4,300 digits"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """The error for a name that is not among ``known``, with the nearest that are."""
    names = list(known)
    near = difflib.get_close_matches(name[:200], names, n=3, cutoff=0.4)
    listed = (
        f"nearest: {', '.join(near)}; all: {', '.join(names)}"
        if near
        else f"expected one of {', '.join(names)}"
    )
    return UserError(f"unknown {kind} {shortened(name)}; {listed}{hint}")
