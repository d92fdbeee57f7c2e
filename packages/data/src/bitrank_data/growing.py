"""Conversations that grow turn by turn: rows of which one goes on where another ends are in one split.

Every answer of a conversation is trained on. If a file has a row for each state of a conversation, the answer
of a short row, with all that precedes it, would be trained on in a longer one and tested too.

A row of two or more answers is joined with all that continue it. One of a single answer is joined with the
longest alone: else a row with a common opening, such as a greeting, would make one text of all that begin so.
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
        answers_N = 1 + np.bincount(row_N, minlength=len(keys_N))
        longer_N, shorter_N = row_N[found_N], first[place_N[found_N]]
        joined_N = _joined(keys_N, answers_N, longer_N, shorter_N)
        pairs = zip(keys_N[longer_N[joined_N]], keys_N[shorter_N[joined_N]], strict=True)
        new_N = _renamed(keys_N, [tuple(map(bytes, pair)) for pair in pairs])
        count = len(np.unique(longer_N[new_N[longer_N] == new_N[shorter_N]]))
        note = (
            f"{count} rows continue the conversation of another row and count as its repeats: they are in "
            "one split with it, and validation and test have the longest of such rows alone"
        )
        report = DataReport({"continued_conversations": count}, (note,))
        return new_N.tobytes(), answers_N, report


def _joined(
    keys_N: np.ndarray, answers_N: np.ndarray, longer_N: np.ndarray, shorter_N: np.ndarray
) -> np.ndarray:
    """Which of the pairs of a longer and a shorter row are to be in one split.

    Rows of a single answer to one prompt are joined with one longer row: that with the most answers, and of
    several the smallest digest, so that the order of the rows does not matter.
    """
    joined_N: np.ndarray = answers_N[shorter_N] > 1
    order_N = np.lexsort((keys_N[longer_N], -answers_N[longer_N]))
    _, longest = np.unique(keys_N[shorter_N[order_N]], return_index=True)
    joined_N[order_N[longest]] = True
    return joined_N


def _renamed(keys_N: np.ndarray, pairs: list[tuple[bytes, ...]]) -> np.ndarray:
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
    return np.where(old[place_N] == keys_N, new[place_N], keys_N).astype(_DIGEST)
