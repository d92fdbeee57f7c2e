"""Output on terminals that cannot show every character."""

from __future__ import annotations

import codecs
import io
import re
import sys
import unicodedata

_ERRORS = "bitrank-plain"
# Characters of the texts of this program. Every other one is shown without its accents, or as a question
# mark.
_PLAIN = {
    "–": "-", "—": "-", "−": "-", "…": "...", "≤": "<=", "≥": ">=", "×": "x", "→": "->", "·": "|",
    "α": "alpha", "±": "+-", "─": "-", "━": "-", "│": "|", "“": '"', "”": '"',
    "‘": "'", "’": "'", "✓": "ok", "✗": "no", "•": "*",
}  # fmt: skip
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹"


def show_every_character() -> None:
    """Let standard output and error write characters that their encoding lacks as plain ones, instead of
    failing.
    """
    codecs.register_error(_ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        # A stream that another program put in place, such as a notebook, has an encoding of its own.
        if isinstance(stream, io.TextIOWrapper) and not _is_utf(stream.encoding):
            stream.reconfigure(errors=_ERRORS)


def _is_utf(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith("utf")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    characters = re.sub(f"[{_RAISED}]+", _power, characters)
    return "".join(_PLAIN.get(character) or _ascii(character) for character in characters), error.end


def _power(digits: re.Match[str]) -> str:
    return "^" + unicodedata.normalize("NFKD", digits[0])


def _ascii(character: str) -> str:
    letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return letters or "?"
