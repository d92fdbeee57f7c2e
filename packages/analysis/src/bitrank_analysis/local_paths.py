"""Local paths inside texts, which an evidence bundle does not publish."""

from __future__ import annotations

import re

# A name with spaces is a folder only if a slash follows. Its words before a space have no punctuation: the
# sentence goes on after "reviews.csv: " or "reviews.csv ".
_NAME = r"[^\s'\"/\\]*"
_SPACED = r"(?:[^\s'\"/\\.:;,]+ ){1,3}[^\s'\"/\\:]*[\w)\]]"
# The root of an absolute path: /, three or more slashes after a scheme (file:///, sqlite:////), ~/, C:\, \\.
_ROOT = (
    r"(?:(?<=:)/{3,}|(?<![\w./\\<~…)\]}-])(?:/(?!/)|~(?:[A-Za-z_][\w.-]*)?[/\\]|[A-Za-z]:[/\\]|\\\\(?=\w)))"
)
_QUOTED = rf"(?<=(?P<quote>['\"])){_ROOT}(?P<inside>[^\n]*?)(?=(?P=quote))"
_PATH = re.compile(rf"{_QUOTED}|{_ROOT}(?P<bare>(?:(?:{_SPACED}|{_NAME})[/\\])*{_NAME})")

_ADDRESS = re.compile(r"\b[A-Za-z][\w+.-]*:/\S*")


def without_addresses(text: str) -> str:
    """``text`` with ``…/name`` in place of every URI and every absolute path."""
    return without_paths(_ADDRESS.sub(lambda found: f"…/{found[0].rstrip('/').rpartition('/')[2]}", text))


def without_paths(text: str) -> str:
    """``text`` with ``…/name`` in place of every absolute path, also of ``~/`` and of Windows.

    A path with spaces is found up to its name if it is quoted, or if the names of its folders have at most
    four words.
    """
    return _PATH.sub(_name, text)


def _name(found: re.Match[str]) -> str:
    path = found["inside"] if found["inside"] is not None else found["bare"]
    name = re.split(r"[/\\]+", path.rstrip("/\\"))[-1]
    return f"…/{name}" if name else found[0]
