"""Output on terminals whose encoding lacks some characters."""

from __future__ import annotations

import codecs
import io
import re
import sys
import unicodedata

_ERRORS = "bitrank-plain"
# Replacements for the special characters in the texts of this program. Other characters lose their accents,
# or become a question mark.
_PLAIN = {
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "≤": "<=",
    "≥": ">=",
    "×": "x",
    "→": "->",
    "·": "|",
    "α": "alpha",
    "±": "+-",
    "─": "-",
    "━": "-",
    "│": "|",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "✓": "ok",
    "✗": "no",
    "•": "*",
}
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


def show_every_character() -> None:
    """Make standard output and error replace characters that their encoding lacks, instead of raising."""
    codecs.register_error(_ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        # A stream that another program installed, such as a notebook's, handles its own encoding.
        if isinstance(stream, io.TextIOWrapper) and not _is_utf(stream.encoding):
            stream.reconfigure(errors=_ERRORS)


def _is_utf(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith("utf")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    characters = re.sub(f"[{_SUPERSCRIPTS}]+", _power, characters)
    return "".join(_PLAIN.get(character) or _ascii(character) for character in characters), error.end


def _power(digits: re.Match[str]) -> str:
    return "^" + unicodedata.normalize("NFKD", digits[0])


def _ascii(character: str) -> str:
    letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return letters or "?"
