"""The one error this package raises on bad input, and the text form that hides passwords."""

from __future__ import annotations

import re


class AnalysisError(ValueError):
    """A store that cannot be read; the message says what was expected, what came and what to do."""

    exit_code = 2  # the input is at fault: a program shows the message alone


# A password in a URI reaches to the last @ of the word, so that one with unquoted characters is hidden too.
_USER_PASSWORD = re.compile(r"(\w://[^\s/:@'\"]*):[^\s'\"]*@")
_QUERY_PASSWORD = re.compile(r"([?&](?:password|sslpassword)=)[^&\s'\"]*", re.IGNORECASE)


def masked(text: str) -> str:
    """``text`` with ``***`` for every password that stands inside a URI."""
    return _QUERY_PASSWORD.sub(r"\1***", _USER_PASSWORD.sub(r"\1:***@", text))
