"""Kinds of tasks: how a text becomes token sequences, and which labels a batch has.

An entry of :data:`DATA_KINDS` is all that tokenization, batching and the reading of a user's file know of a
kind. Further entries may be added before a task of their kind is opened.

Classification: one sequence per example, truncated to ``max_length``. Language modelling: each document is
cut into windows of ``max_length`` tokens; a window keeps the id of its document, so that losses can be summed
per document for paired tests. Sequence-to-sequence: one sequence per example, the tokens of its source and
then those of its target; a batch pads the two parts apart, for the encoder and for the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitrank_data.errors import DataError
from bitrank_data.examples import Example
from bitrank_data.sequences import IGNORED, Cutting, Piece, TokenSplit

CLASSIFICATION = "classification"
LANGUAGE_MODELLING = "language-modelling"
SEQUENCE_TO_SEQUENCE = "sequence-to-sequence"

# Sequences of each text of a batch, and the number of truncated texts.
Encoded = tuple[list[list[Piece]], int]


@dataclass(frozen=True)
class PaddedBatch:
    """Model inputs of the sequences ``indices`` of ``split``, padded.

    ``mask_BT`` is 1 for tokens and 0 for padding.
    """

    split: TokenSplit
    indices: np.ndarray
    ids_BT: np.ndarray
    mask_BT: np.ndarray


def whole_sequence(split: TokenSplit, index: int) -> np.ndarray:
    """All tokens of a sequence."""
    return split.sequence(index)


def whole_lengths(split: TokenSplit) -> np.ndarray:
    """Number of tokens of each sequence (N,)."""
    return split.lengths_N


def all_targets(width: int) -> Piece:
    """A sequence of ``width`` tokens, all of which are targets."""
    return Piece([1] * width, [1] * width)


@dataclass(frozen=True)
class DataKind:
    """Data of one kind of task.

    ``encode`` makes the sequences of a batch of examples, with a Hugging Face tokenizer. ``labels`` makes the
    labels of a padded batch: (B,), or (B, T) with :data:`~bitrank_data.sequences.IGNORED` for positions
    without one. ``columns`` are the columns of a user's file of this kind; a kind without columns is never
    recognized in a file. ``predicted_tokens`` counts the targets of a split, for kinds that cut a document
    into windows; None: an example is one sequence.

    ``inputs`` are the tokens of a sequence that are the model's input, and ``lengths`` (N,) the widths that
    sequences need in a batch. ``full`` makes the longest sequence for a given width.
    """

    about: str
    encode: Callable[[Sequence[Example], Any, Cutting], Encoded]
    labels: Callable[[PaddedBatch], np.ndarray]
    columns: frozenset[str] = frozenset()
    predicted_tokens: Callable[[TokenSplit], int] | None = None
    inputs: Callable[[TokenSplit, int], np.ndarray] = whole_sequence
    lengths: Callable[[TokenSplit], np.ndarray] = whole_lengths
    full: Callable[[int], Piece] = all_targets


def encode_texts(examples: Sequence[Example], tokenizer: Any, cutting: Cutting) -> Encoded:
    """One sequence per text, truncated to ``max_length``; none for a text without tokens."""
    texts = [example.text for example in examples]
    options = {"add_special_tokens": cutting.special_tokens}
    encoded = list(tokenizer(texts, **options, truncation=False, verbose=False)["input_ids"])
    cut = sum(len(tokens) > cutting.max_length for tokens in encoded)
    if cut:
        encoded = list(
            tokenizer(texts, **options, truncation=True, max_length=cutting.max_length)["input_ids"]
        )
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


def encode_pairs(examples: Sequence[Any], tokenizer: Any, cutting: Cutting) -> Encoded:
    """Source and target of each :class:`~bitrank_data.TargetExample` in one sequence.

    The targets of the sequence are the tokens of the target text.

    The source is cut at ``max_length`` and the target one token shorter, since the decoder's input begins
    with a start token. A target ends with the end-of-sequence token. There is no sequence for an example
    whose source or target has no token.
    """
    sources, cut = encode_texts(examples, tokenizer, cutting)
    targets, cut_targets = _encode_targets([example.target for example in examples], tokenizer, cutting)
    sequences = []
    for pieces, target in zip(sources, targets, strict=True):
        sequences.append([_pair(pieces[0].tokens, target)] if pieces and target else [])
    return sequences, cut + cut_targets


def _encode_targets(texts: Sequence[str], tokenizer: Any, cutting: Cutting) -> tuple[list[list[int]], int]:
    """Tokens of each target text, and the number of truncated ones."""
    options = {"add_special_tokens": cutting.special_tokens, "verbose": False}
    encoded = tokenizer(text_target=list(texts), **options)["input_ids"]
    end = tokenizer.eos_token_id if cutting.special_tokens else None
    added, longest = len(cutting.before) + len(cutting.after), cutting.max_length - 1
    targets, cut = [], 0
    for tokens in encoded:
        ending = [] if end is None else [end]
        body = tokens[:-1] if tokens[-1:] == ending and ending else tokens
        room = longest - len(ending)
        cut += len(body) > room
        targets.append([*body[:room], *ending] if len(tokens) > added else [])
    return targets, cut


def _pair(source: Sequence[int] | np.ndarray, target: Sequence[int]) -> Piece:
    return Piece([*source, *target], [IGNORED] * len(source) + list(target))


def prompt_part(split: TokenSplit, index: int) -> np.ndarray:
    """Tokens of a sequence before its first target: the encoder's input."""
    return split.prompt_of(index)


def longer_part(split: TokenSplit) -> np.ndarray:
    """Number of tokens of the prompt or of the completion, the longer one, of each sequence (N,)."""
    parts = [(len(split.prompt_of(i)), len(split.completion_of(i))) for i in range(len(split))]
    return np.asarray([max(pair) for pair in parts], dtype=np.int64)


def full_pair(width: int) -> Piece:
    """A source of ``width`` tokens with the longest target."""
    return _pair([1] * width, [1] * max(1, width - 1))


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


def labels_of_completions(batch: PaddedBatch) -> np.ndarray:
    """Completion of each sequence (B, S): the decoder's labels.

    S differs from the inputs' width T, so that masks of both are told apart by shape.
    """
    completions = [batch.split.completion_of(int(index)) for index in batch.indices]
    longest = max((len(completion) for completion in completions), default=1)
    width = longest + (longest == batch.ids_BT.shape[1])
    labels_BS = np.full((len(completions), width), IGNORED, dtype=np.int64)
    for row, completion in enumerate(completions):
        labels_BS[row, : len(completion)] = completion
    return labels_BS


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
    SEQUENCE_TO_SEQUENCE: DataKind(
        "the target text of a source text",
        encode_pairs,
        labels_of_completions,
        columns=frozenset({"source", "target"}),
        inputs=prompt_part,
        lengths=longer_part,
        full=full_pair,
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
