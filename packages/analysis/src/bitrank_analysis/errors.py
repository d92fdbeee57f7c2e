"""The package's error for bad input, and masking of passwords in messages."""

from __future__ import annotations

import re


class AnalysisError(ValueError):
    """Bad input, such as an unreadable store; the message says what was expected, what came and a remedy."""

    exit_code = 2  # bad input: a command prints the message without a traceback


# A password may contain an unescaped @ or /, so the match extends to the last @ before a space or a quote.
_USER_PASSWORD = re.compile(r"(\w://[^\s/:@'\"]*):[^\s'\"]*@")
_QUERY_PASSWORD = re.compile(r"([?&](?:password|sslpassword)=)[^&\s'\"]*", re.IGNORECASE)


def masked(text: str) -> str:
    """``text`` with every password in a URI replaced by ``***``.

    The orchestrator has its own copy, because its folders below ``cli/`` do not import this package.
    """
    return _QUERY_PASSWORD.sub(r"\1***", _USER_PASSWORD.sub(r"\1:***@", text))
