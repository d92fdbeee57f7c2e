"""The package's error for bad input, and masking of secrets in messages."""

from __future__ import annotations

import re


class AnalysisError(ValueError):
    """Bad input, such as an unreadable store; the message says what was expected, what came and a remedy."""

    exit_code = 2  # bad input: a command prints the message without a traceback


# All between :// and @ is a secret: a token has no colon. Where a colon comes first, a password may contain
# an unescaped / or @, so the match extends to the last @ of the word.
_USER = re.compile(r"(\w://)(?:[^\s/?#@:]*:\S*|[^\s/?#]*)@")
# A value extends to the next & or space; closing quotes and punctuation of the sentence around it are kept.
_QUERY = re.compile(
    r"([?&#][\w.-]*(?:token|key|password|secret)=)[^&\s]+?(?=['\"]?[;,.:)\]}]*(?:[&\s]|$))", re.IGNORECASE
)


def masked(text: str) -> str:
    """``text`` with ``***`` for the user part of every URI, and for tokens, keys and passwords of its query.

    The orchestrator has its own copy, because its folders below ``cli/`` do not import this package.
    """
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))


def masked_uri(uri: str) -> str:
    """:func:`masked` for a text that is one URI as a whole: spaces in it are part of the secret too."""
    return masked(re.sub(r"\s", "%20", uri))
