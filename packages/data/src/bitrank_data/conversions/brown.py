"""Plain text of the Brown corpus, whose files have a part-of-speech tag after each word (``The/at``)."""

from __future__ import annotations

import re

from bitrank_data.tables import Row, Table

_QUOTES = {"``": "“", "''": "”"}
_NO_SPACE_BEFORE = re.compile(r" (?=[.,;:?!)\]”%]|'s\b)")
_NO_SPACE_AFTER = re.compile(r"(?<=[(\[“$]) ")


def rows_of_file(path: str, content: bytes) -> list[Row]:
    """One row: file name and text, a paragraph of the file on each line."""
    lines = []
    for line in content.decode("utf-8").splitlines():
        words = [token.rpartition("/")[0] or token for token in line.split()]
        if words:
            lines.append(joined(words))
    return [{"name": path.rpartition("/")[2], "text": "\n".join(lines)}]


def joined(words: list[str]) -> str:
    """``words`` with spaces where English has them."""
    text = " ".join(_QUOTES.get(word, word) for word in words)
    return _NO_SPACE_AFTER.sub("", _NO_SPACE_BEFORE.sub("", text))


TABLES: dict[str, Table] = {
    "brown.parquet": Table(r"package/c[a-r]\d\d$", rows_of_file, {"name": "string", "text": "string"}),
}
