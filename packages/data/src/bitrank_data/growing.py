"""Conversations that grow turn by turn: rows of which one goes on where another ends are in one split.

Every answer of a conversation is trained on. If a file has a row for each state of a conversation, the answer
of a short row, with all that precedes it, would be trained on in a longer one and tested too.

A row of two or more answers is joined with all that continue it. One of a single answer is joined with the
longest alone: else a row with a common opening, such as a greeting, would make one text of all that begin so.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bitrank_data.corpora.groups import connected
from bitrank_data.examples import DataReport, Example
from bitrank_data.splitting import KEY_BYTES, TEST, TRAIN, Keyed, key_digest

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

    @property
    def _whole_N(self) -> np.ndarray:
        """Digest of each row."""
        return np.frombuffer(self.wholes, dtype=_DIGEST)

    @property
    def _beginnings(self) -> tuple[np.ndarray, np.ndarray]:
        """Digest of each beginning, and its row."""
        return np.frombuffer(self.beginnings, dtype=_DIGEST), np.asarray(self.row)

    def merged(self, keyed: Keyed, rows_N: np.ndarray, held_out: Sequence[str]) -> tuple[Keyed, DataReport]:
        """The rows ``rows_N`` of ``keyed``, in ascending order, for a split by hash, and a note.

        Rows that continue others of them get one digest with them, and numbers of answers as lengths.
        """
        chosen = keyed.select(rows_N)
        if not self.beginnings:
            return chosen, DataReport()
        begun_N, row_N = self._beginnings
        inside_N = np.isin(row_N, rows_N)
        row_N = np.searchsorted(rows_N, row_N[inside_N])
        found_N, shorter_N = _continued(self._whole_N[rows_N], begun_N[inside_N])
        if not found_N.any():
            return chosen, DataReport()
        keys_N, longer_N = np.frombuffer(chosen.digests, dtype=_DIGEST), row_N[found_N]
        answers_N = 1 + np.bincount(row_N, minlength=len(keys_N))
        joined_N = _joined(keys_N, answers_N, longer_N, shorter_N)
        pairs = zip(keys_N[longer_N[joined_N]], keys_N[shorter_N[joined_N]], strict=True)
        new_N = _renamed(keys_N, [tuple(map(bytes, pair)) for pair in pairs])
        count = len(np.unique(longer_N[new_N[longer_N] == new_N[shorter_N]]))
        return replace(chosen, digests=new_N.tobytes(), lengths_N=answers_N), _note(count, held_out)

    def check_given(self, rows: Mapping[str, np.ndarray], given: Sequence[str]) -> DataReport:
        """Notes on rows of the ``given`` splits that a row of training continues, or that continue one."""
        report = DataReport()
        if not self.beginnings:
            return report
        begun_N, row_N = self._beginnings
        for split in (split for split in given if split != TRAIN):
            trained_N, held_N = np.isin(row_N, rows[TRAIN]), np.isin(row_N, rows[split])
            continued_N = np.isin(self._whole_N[rows[split]], begun_N[trained_N])
            continuing_N = np.isin(begun_N[held_N], self._whole_N[rows[TRAIN]])
            counts = {"go on in": continued_N.sum(), "continue": len(np.unique(row_N[held_N][continuing_N]))}
            for how, count in counts.items():
                report += _shared(split, how, int(count), len(rows[split]))
        return report


def _note(count: int, held_out: Sequence[str]) -> DataReport:
    have = "validation and test have" if TEST in held_out else "validation has"
    note = (
        f"{count} rows continue the conversation of another row and count as its repeats: they are in "
        f"one split with it, and {have} the longest of such rows alone"
    )
    return DataReport({"continued_conversations": count}, (note,))


def _shared(split: str, how: str, count: int, texts: int) -> DataReport:
    note = f"{count} of {texts} texts of {split} {how} a text of train, as in the files"
    counts = {f"{split}_texts_that_{how.replace(' ', '_')}_train": count}
    return DataReport(counts, (note,) if count else ())


def _continued(whole_N: np.ndarray, begun_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the beginnings are a row of their own, and the first such row of each that is."""
    wholes, first = np.unique(whole_N, return_index=True)
    place_N = np.searchsorted(wholes, begun_N).clip(max=len(wholes) - 1)
    found_N = wholes[place_N] == begun_N
    return found_N, first[place_N[found_N]]


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
