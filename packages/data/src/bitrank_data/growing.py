"""Conversations that grow turn by turn: rows of which one goes on where another ends are in one split.

Every answer of a conversation is trained on. If a file has a row for each state of a conversation, the answer
of a short row, with all that precedes it, would be trained on in a longer one and tested too.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field

import numpy as np

from bitrank_data.corpora.groups import connected
from bitrank_data.examples import DataReport, Example
from bitrank_data.splitting import KEY_BYTES, key_digest

_DIGEST = f"S{KEY_BYTES}"  # a digest that ends with zeros equals only itself: all have one length


@dataclass
class Growth:
    """Digests of conversations: of each whole one, and of its beginnings up to an earlier answer."""

    wholes: bytearray = field(default_factory=bytearray)
    beginnings: bytearray = field(default_factory=bytearray)
    row: array = field(default_factory=lambda: array("q"))  # of each beginning

    def add(self, index: int, example: Example) -> None:
        """Add the row ``index``; examples that are no conversations have no digest."""
        answered = example.answered
        if not answered:
            return
        *earlier, whole = answered
        self.wholes += key_digest(whole)
        for text in earlier:
            self.beginnings += key_digest(text)
            self.row.append(index)

    def merged(self, digests: bytearray) -> tuple[bytes | bytearray, np.ndarray | None, DataReport]:
        """Digests by which rows are split, the number of answers of each row, and a note.

        Rows that continue others get one digest with them. Without such rows ``digests`` are unchanged, and
        there are no numbers.
        """
        begun_N, row_N = np.frombuffer(self.beginnings, dtype=_DIGEST), np.asarray(self.row)
        wholes, first = np.unique(np.frombuffer(self.wholes, dtype=_DIGEST), return_index=True)
        if not len(begun_N):
            return digests, None, DataReport()
        place_N = np.searchsorted(wholes, begun_N).clip(max=len(wholes) - 1)
        found_N = wholes[place_N] == begun_N
        if not found_N.any():
            return digests, None, DataReport()
        keys_N = np.frombuffer(digests, dtype=_DIGEST)
        pairs = zip(keys_N[row_N[found_N]], keys_N[first[place_N[found_N]]], strict=True)
        answers_N = 1 + np.bincount(row_N, minlength=len(keys_N))
        count = len(np.unique(row_N[found_N]))
        note = (
            f"{count} rows continue the conversation of another row and count as its repeats: they are in "
            "one split with it, and validation and test have the longest of such rows alone"
        )
        report = DataReport({"continued_conversations": count}, (note,))
        return _renamed(keys_N, [tuple(map(bytes, pair)) for pair in pairs]), answers_N, report


def _renamed(keys_N: np.ndarray, pairs: list[tuple[bytes, ...]]) -> bytes:
    """``keys_N`` with one new digest in place of all that ``pairs`` connect.

    It is the hash of theirs: the smallest digest of many is a small one, and test and validation take the
    groups with the smallest digests.
    """
    renamed: dict[bytes, bytes] = {}
    for group in connected(pairs, lambda pair: [key.hex() for key in pair]):
        members = {key for pair in group for key in pair}
        digest = hashlib.sha256(b"".join(sorted(members))).digest()[:KEY_BYTES]
        renamed |= dict.fromkeys(members, digest)
    old = np.array(sorted(renamed), dtype=_DIGEST)
    new = np.array([renamed[key] for key in sorted(renamed)], dtype=_DIGEST)
    place_N = np.searchsorted(old, keys_N).clip(max=len(old) - 1)
    return np.where(old[place_N] == keys_N, new[place_N], keys_N).astype(_DIGEST).tobytes()
