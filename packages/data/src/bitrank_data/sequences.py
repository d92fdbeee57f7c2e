"""Token sequences as arrays, and the limits by which texts become sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Numbers = Sequence[int] | np.ndarray
IGNORED = -100  # label that PyTorch's cross entropy ignores


@dataclass(frozen=True)
class Piece:
    """One token sequence; ``targets`` is the label of each token, for kinds that label tokens."""

    tokens: Numbers
    targets: Numbers = ()


@dataclass(frozen=True)
class TokenSplit:
    """Token sequences of one split; sequence i is ``tokens[offsets[i]:offsets[i + 1]]``.

    ``ids[i]`` is the example of sequence i. ``labels_N`` has the class of each sequence, and is empty for
    kinds without classes of sequences. ``targets`` has the label of each token (:data:`IGNORED` for none),
    and is empty for kinds that do not label tokens.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels_N: np.ndarray
    ids: list[str]
    targets: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths_N(self) -> np.ndarray:
        return np.diff(self.offsets)

    def sequence(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def targets_of(self, index: int) -> np.ndarray:
        """Labels of the tokens of sequence ``index``; empty for kinds that do not label tokens."""
        return self.targets[self.offsets[index] : self.offsets[index + 1]]

    def prompt_of(self, index: int) -> np.ndarray:
        """Tokens of sequence ``index`` before its first target; all of them if it has no target."""
        return self.sequence(index)[: self._first_target(index)]

    def completion_of(self, index: int) -> np.ndarray:
        """Tokens of sequence ``index`` from its first target on; none if it has no target."""
        return self.sequence(index)[self._first_target(index) :]

    def _first_target(self, index: int) -> int:
        places = np.flatnonzero(self.targets_of(index) != IGNORED)
        return int(places[0]) if len(places) else len(self.sequence(index))

    def select(self, indices: np.ndarray) -> TokenSplit:
        """Split with only the sequences ``indices``, in that order."""
        pieces = [Piece(self.sequence(i), self.targets_of(i)) for i in indices]
        labels = self.labels_N[indices] if len(self.labels_N) else self.labels_N
        return pack(pieces, labels, [self.ids[i] for i in indices])


@dataclass(frozen=True)
class Cutting:
    """Conversion of texts to sequences: maximum length, and special tokens before and after a text.

    Without special tokens, ``before`` and ``after`` are empty.
    """

    max_length: int
    special_tokens: bool = True
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def pack(pieces: Sequence[Piece], labels_N: np.ndarray, ids: list[str]) -> TokenSplit:
    """One split from its sequences."""
    tokens = _joined([piece.tokens for piece in pieces])
    targets = _joined([piece.targets for piece in pieces])
    offsets = np.cumsum([0, *(len(piece.tokens) for piece in pieces)], dtype=np.int64)
    return TokenSplit(tokens, offsets, labels_N, ids, targets)


def _joined(parts: Sequence[Numbers]) -> np.ndarray:
    if not parts:
        return np.zeros(0, dtype=np.int32)
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
