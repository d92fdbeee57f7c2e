"""Kinds of tasks: how a text becomes token sequences, and which labels a batch has.

An entry of :data:`DATA_KINDS` is all that tokenization, batching and the reading of a user's file know of a
kind. Further entries may be added before a task of their kind is opened.

Classification: one sequence per example, truncated to ``max_length``. Language modelling: each document is
cut into windows of ``max_length`` tokens; a window keeps the id of its document, so that losses can be summed
per document for paired tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitrank_data.errors import DataError
from bitrank_data.examples import Example, PairExample
from bitrank_data.sequences import IGNORED, Cutting, Piece, TokenSplit

CLASSIFICATION = "classification"
LANGUAGE_MODELLING = "language-modelling"

# Sequences of each text of a batch, and the number of truncated texts.
Encoded = tuple[list[list[Piece]], int]


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences ``indices`` of ``split``, padded. ``mask_BT`` is 1 for tokens and 0 for padding."""

    split: TokenSplit
    indices: np.ndarray
    ids_BT: np.ndarray
    mask_BT: np.ndarray


@dataclass(frozen=True)
class DataKind:
    """Data of one kind of task.

    ``encode`` makes the sequences of a batch of examples, with a Hugging Face tokenizer. ``labels`` makes the
    labels of a padded batch: (B,), or (B, T) with :data:`~bitrank_data.sequences.IGNORED` for positions
    without one. ``columns`` are the columns of a user's file of this kind; a kind without columns is never
    recognized in a file. ``predicted_tokens`` counts the targets of a split, for kinds that cut a document
    into windows; None: an example is one sequence.
    """

    about: str
    encode: Callable[[Sequence[Example], Any, Cutting], Encoded]
    labels: Callable[[PaddedBatch], np.ndarray]
    columns: frozenset[str] = frozenset()
    predicted_tokens: Callable[[TokenSplit], int] | None = None


def encode_texts(examples: Sequence[Example], tokenizer: Any, cutting: Cutting) -> Encoded:
    """One sequence per text or pair of texts, truncated to ``max_length``; none for a text without tokens.

    The longer text of a pair is truncated first (``longest_first``).
    """
    texts: list[list[str]] = [[example.text for example in examples]]
    if pairs := [example.pair for example in examples if isinstance(example, PairExample)]:
        texts.append(pairs)
    options = {"add_special_tokens": cutting.special_tokens, "verbose": False}
    encoded = list(tokenizer(*texts, **options, truncation=False)["input_ids"])
    cut = sum(len(tokens) > cutting.max_length for tokens in encoded)
    if cut:
        limits = {"truncation": "longest_first", "max_length": cutting.max_length}
        encoded = list(tokenizer(*texts, **options, **limits)["input_ids"])
    added = len(cutting.before) + len(cutting.after)
    pieces = [[Piece(tokens)] if len(tokens) > added else [] for tokens in encoded]
    return pieces, cut


def encode_windows(examples: Sequence[Example], tokenizer: Any, cutting: Cutting) -> Encoded:
    """Windows of ``max_length`` tokens of each text; none of a single token, which predicts nothing."""
    texts = [example.text for example in examples]
    # ``verbose=False`` hides the warning that a text exceeds the model's positions: it is cut into windows.
    encoded = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return [_windows(tokens, cutting) for tokens in encoded], 0


def _windows(tokens: list[int], cutting: Cutting) -> list[Piece]:
    if not tokens:
        return []
    body = [*tokens, *cutting.after]
    size = cutting.max_length - len(cutting.before)
    windows = [[*cutting.before, *body[start : start + size]] for start in range(0, len(body), size)]
    return [Piece(window) for window in windows if len(window) > 1]


def labels_of_sequences(batch: PaddedBatch) -> np.ndarray:
    """Class of each sequence (B,)."""
    labels_B: np.ndarray = batch.split.labels_N[batch.indices]
    return labels_B


def labels_of_next_tokens(batch: PaddedBatch) -> np.ndarray:
    """The tokens themselves (B, T): the objective shifts them by one position."""
    return np.where(batch.mask_BT == 1, batch.ids_BT, IGNORED)


def labels_of_tokens(batch: PaddedBatch) -> np.ndarray:
    """Label of each token (B, T), from the split's ``targets``."""
    labels_BT = np.full(batch.ids_BT.shape, IGNORED, dtype=np.int64)
    for row, index in enumerate(batch.indices):
        targets = batch.split.targets_of(int(index))
        labels_BT[row, : len(targets)] = targets
    return labels_BT


def _tokens_after_the_first(split: TokenSplit) -> int:
    return int((split.lengths_N - 1).sum())


DATA_KINDS: dict[str, DataKind] = {
    CLASSIFICATION: DataKind(
        "the class of a sentence or text",
        encode_texts,
        labels_of_sequences,
        columns=frozenset({"text", "label"}),
    ),
    LANGUAGE_MODELLING: DataKind(
        "the next token of a document",
        encode_windows,
        labels_of_next_tokens,
        columns=frozenset({"text"}),
        predicted_tokens=_tokens_after_the_first,
    ),
}


def data_kind(name: str) -> DataKind:
    """Entry ``name`` of :data:`DATA_KINDS`. Raises :class:`DataError` for an unknown kind."""
    if name not in DATA_KINDS:
        raise DataError(
            f"unknown kind of task {name!r}: expected one of {', '.join(DATA_KINDS)}; add an entry to "
            "bitrank_data.DATA_KINDS"
        )
    return DATA_KINDS[name]


def kind_of_columns(columns: Sequence[str]) -> str:
    """Kind of a user's file with ``columns``: the one with the most columns that are all there.

    Raises :class:`DataError` if no kind fits.
    """
    fitting = [name for name, kind in DATA_KINDS.items() if kind.columns and kind.columns <= set(columns)]
    if not fitting:
        raise DataError(f"no kind of task has the columns {', '.join(columns) or 'none'}")
    return max(fitting, key=lambda name: len(DATA_KINDS[name].columns))
