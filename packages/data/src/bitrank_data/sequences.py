"""Token sequences as arrays, and the limits by which texts become sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

Numbers = Sequence[int] | np.ndarray
IGNORED = -100  # label that PyTorch's cross entropy ignores
# Rows of evaluation: values by column. ``index`` is the sequence in its split.
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Piece:
    """One token sequence.

    ``targets`` is the label of each token, for kinds that label tokens. ``types`` is the segment of each
    token (``token_type_ids``), for pairs of texts. ``spans`` (T, 2) is the first character of each token in a
    text of the example and the character after its last, −1 for tokens of no text; for kinds that select a
    part of a text.
    """

    tokens: Numbers
    targets: Numbers = ()
    types: Numbers = ()
    spans: np.ndarray | None = None


# Sequences of each text of a batch, and the number of truncated texts.
Encoded = tuple[list[list[Piece]], int]


class Ids(Sequence[str]):
    """Ids of sequences as one text, for arrays that are mapped into memory."""

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self._text, self._ends = text, ends

    @staticmethod
    def packed(ids: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """UTF-8 bytes of all ids, and the end of each."""
        encoded = [id_.encode() for id_ in ids]
        ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
        return np.frombuffer(b"".join(encoded), dtype=np.uint8), ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # raises IndexError, which ends iteration
        start = int(self._ends[place - 1]) if place else 0
        return self._text[start : int(self._ends[place])].tobytes().decode()

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


def _keep() -> None:
    """Release nothing: the arrays are not mapped from files."""


@dataclass(frozen=True)
class TokenSplit:
    """Token sequences of one split; sequence i is ``tokens[offsets[i]:offsets[i + 1]]``.

    ``ids[i]`` is the example of sequence i. ``labels_N`` has the class of each sequence, and is empty for
    kinds without classes of sequences. ``targets`` has the label of each token (:data:`IGNORED` for none),
    and is empty for kinds that do not label tokens. ``types`` has the segment of each token, and is empty
    for single texts. ``spans`` (tokens, 2) has the characters of each token (:class:`Piece`), and is empty
    for kinds without them. ``records`` has the texts of each example by its id, for kinds that are evaluated
    on texts; training splits have none. ``release`` removes tokens that are mapped from files from the memory
    of the process; they are loaded again when they are used.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels_N: np.ndarray
    ids: Sequence[str]
    targets: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    types: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    spans: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int32))
    records: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    release: Callable[[], None] = field(default=_keep, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths_N(self) -> np.ndarray:
        """Number of tokens of each sequence."""
        return np.diff(self.offsets)

    def sequence(self, index: int) -> np.ndarray:
        """Tokens of sequence ``index`` (T,)."""
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

    def types_of(self, index: int) -> np.ndarray:
        """Segments of the tokens of sequence ``index``; empty for single texts."""
        return self.types[self.offsets[index] : self.offsets[index + 1]]

    def spans_of(self, index: int) -> np.ndarray:
        """Characters of the tokens of sequence ``index`` (T, 2); empty for kinds without them."""
        return self.spans[self.offsets[index] : self.offsets[index + 1]]

    def last_answer(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens before the last run of targets of sequence ``index``, and the tokens of that run.

        In instruction data these are the prompt of the last answer and the answer itself.
        """
        tokens, targets = self.sequence(index), self.targets_of(index)
        places = np.flatnonzero(targets != IGNORED)
        gaps = np.flatnonzero(np.diff(places) > 1)
        first = int(places[gaps[-1] + 1]) if len(gaps) else int(places[0])
        return tokens[:first], tokens[first : int(places[-1]) + 1]

    def select(self, indices: np.ndarray) -> TokenSplit:
        """Split with only the sequences ``indices``, in that order."""
        pieces = [
            Piece(self.sequence(i), self.targets_of(i), self.types_of(i), self.spans_of(i)) for i in indices
        ]
        labels = self.labels_N[indices] if len(self.labels_N) else self.labels_N
        return pack(pieces, labels, [self.ids[i] for i in indices], self.records)


@dataclass(frozen=True)
class Cutting:
    """Conversion of texts to sequences: maximum length, and special tokens before and after a text.

    Without special tokens, ``before`` and ``after`` are empty.
    """

    max_length: int
    special_tokens: bool = True
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def pack(
    pieces: Sequence[Piece],
    labels_N: np.ndarray,
    ids: list[str],
    records: Mapping[str, dict[str, Any]] | None = None,
) -> TokenSplit:
    """One split from its sequences."""
    tokens = _joined([piece.tokens for piece in pieces])
    targets = _joined([piece.targets for piece in pieces])
    types = _joined([piece.types for piece in pieces])
    offsets = np.cumsum([0, *(len(piece.tokens) for piece in pieces)], dtype=np.int64)
    spans = [np.zeros((0, 2), dtype=np.int32)]
    spans += [piece.spans.astype(np.int32) for piece in pieces if piece.spans is not None]
    return TokenSplit(tokens, offsets, labels_N, ids, targets, types, np.concatenate(spans), records or {})


def _joined(parts: Sequence[Numbers]) -> np.ndarray:
    if not parts:
        return np.zeros(0, dtype=np.int32)
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
