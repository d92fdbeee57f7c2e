"""Bad words from a user, told apart from broken code: they end with a clear line and exit code 2, never with a traceback."""

from __future__ import annotations

import difflib
import re
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


# A password in a URI reaches to the last @ of the word, so that one with unquoted characters is hidden too.
_USER_PASSWORD = re.compile(r"(\w://[^\s/:@'\"]*):[^\s'\"]*@")
_QUERY_PASSWORD = re.compile(r"([?&](?:password|sslpassword)=)[^&\s'\"]*", re.IGNORECASE)


def masked(text: str) -> str:
    """``text`` with ``***`` for every password that stands inside a URI."""
    return _QUERY_PASSWORD.sub(r"\1***", _USER_PASSWORD.sub(r"\1:***@", text))


class UserError(ValueError):
    """Something asked for cannot be done; the message says what was expected, what came and what to do."""


def is_user_error(error: BaseException) -> bool:
    """Whether ``error`` speaks to the user. Each package has its own ``…Error(ValueError)`` for that; none imports another's."""
    return any(kind.__name__ in _SPEAK_TO_THE_USER for kind in type(error).__mro__)


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
