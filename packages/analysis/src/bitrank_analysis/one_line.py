"""Texts of data on one line of a terminal or of a Markdown table."""

from __future__ import annotations

import re

# Control characters are shown: a terminal would obey them. Those that separate lines or columns are spaces.
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_SHOWN |= dict.fromkeys(map(ord, "\t\n\v\f\r\x85\u2028\u2029"), " ")


def one_line(text: str) -> str:
    """``text`` with a space for each line break and tab, and other control characters as ``\\x1b``."""
    return text.translate(_SHOWN)


def markdown_cell(text: str) -> str:
    """``text`` as a cell of a pipe table: on one line, with pipes and the backslashes before them escaped."""
    return re.sub(r"(\\*)\|", r"\1\1\|", one_line(text))
