"""Kinds of tasks: how a text becomes token sequences, and which labels a batch has.

Tokenization, batching and the reading of a user's file depend on a kind through its entry in
:data:`DATA_KINDS` only. Further entries may be added before a task of their kind is opened.

Classification: one sequence per example, truncated to ``max_length``. Language modelling: each document is
cut into windows of ``max_length`` tokens; a window keeps the id of its document, so that losses can be summed
per document for paired tests. Instruction: one sequence per dialogue, whose answers are predicted. Question
answering and probing have a module each. Sequence-to-sequence: one sequence per example, the tokens of its
source and then those of its target; a batch pads the two parts apart, for the encoder and for the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitrank_data.conversations import INSTRUCTIONS, dialogue_of_target, target_of_dialogue
from bitrank_data.dialogues import encode_dialogues, notes_of_dialogues
from bitrank_data.errors import DataError
from bitrank_data.examples import Example, PairExample
from bitrank_data.layouts import LABELLED_TEXT, PLAIN_TEXT, SOURCE_AND_TARGET, Layout
from bitrank_data.probing import FACTS, encode_facts, encode_masked_facts
from bitrank_data.question_answering import QUESTIONS, encode_questions, record_of_question, rows_of_questions
from bitrank_data.sequences import IGNORED, Cutting, Encoded, Piece, Rows, TokenSplit
from bitrank_data.special_tokens import special_tokens_around

CLASSIFICATION = "classification"
LANGUAGE_MODELLING = "language-modelling"
INSTRUCTION = "instruction-following"
QUESTION_ANSWERING = "question-answering"
PROBING = "probing"
MASKED_PROBING = "masked-probing"
SEQUENCE_TO_SEQUENCE = "sequence-to-sequence"


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
    without one. ``layouts`` are the columns of a user's file of this kind; a kind without layouts is never
    recognized in a file. ``predicted_tokens`` counts the targets of a split, for kinds that cut a document
    into windows; None: an example is one sequence. ``notes`` takes an example of a task and the tokenizer,
    and returns sentences for the user on how texts become sequences.

    ``left_out`` completes the note on the examples for which ``encode`` makes no sequence: their number,
    ``left_out``, and the first one. ``record`` gives the texts of an example that its evaluation needs, and
    ``merge`` makes one row per example from the rows of all sequences of a split; None: sequences are
    evaluated without texts, one by one.

    ``reads`` maps another kind to the function that makes an example of this kind of one of its examples: the
    user may choose this kind for such a task.

    ``inputs`` are the tokens of a sequence that are the model's input, and ``lengths`` (N,) the widths that
    sequences need in a batch. ``full`` makes the longest sequence for a given width.
    """

    about: str
    encode: Callable[[Sequence[Example], Any, Cutting], Encoded]
    labels: Callable[[PaddedBatch], np.ndarray]
    layouts: tuple[Layout, ...] = ()
    predicted_tokens: Callable[[TokenSplit], int] | None = None
    inputs: Callable[[TokenSplit, int], np.ndarray] = whole_sequence
    lengths: Callable[[TokenSplit], np.ndarray] = whole_lengths
    full: Callable[[int], Piece] = all_targets
    notes: Callable[[Example, Any], tuple[str, ...]] = lambda example, tokenizer: ()
    left_out: str = "texts have too few tokens to learn from and were left out"
    record: Callable[[Any], dict[str, Any]] | None = None
    merge: Callable[[TokenSplit, Rows], Rows] | None = None
    reads: Mapping[str, Callable[[Any], Example]] = field(default_factory=dict)


def encode_texts(examples: Sequence[Example], tokenizer: Any, cutting: Cutting) -> Encoded:
    """One sequence per text or pair of texts, truncated to ``max_length``; none for a text without tokens.

    The longer text of a pair is truncated first (``longest_first``), and the tokenizer's segments, such as
    BERT's, become ``Piece.types``.
    """
    pieces, is_cut = _encode_texts(examples, tokenizer, cutting)
    return pieces, sum(is_cut)


def _encode_texts(
    examples: Sequence[Example], tokenizer: Any, cutting: Cutting
) -> tuple[list[list[Piece]], list[bool]]:
    """Sequences of each example, and whether it was truncated."""
    texts: list[list[str]] = [[example.text for example in examples]]
    if pairs := [example.pair for example in examples if isinstance(example, PairExample)]:
        texts.append(pairs)
    added = special_tokens_around(tokenizer, cutting, pairs=bool(pairs))
    options = {"add_special_tokens": cutting.special_tokens, "verbose": False}
    # One token more than fits shows which texts are too long, without lists of all their tokens.
    encoded = tokenizer(*texts, **options, truncation="longest_first", max_length=cutting.max_length + 1)
    is_cut = [len(tokens) > cutting.max_length for tokens in encoded["input_ids"]]
    if any(is_cut):
        encoded = tokenizer(*texts, **options, truncation="longest_first", max_length=cutting.max_length)
    types = encoded.get("token_type_ids") if pairs else None
    pieces = [Piece(t, types=types[n] if types else ()) for n, t in enumerate(encoded["input_ids"])]
    return [[piece] if len(piece.tokens) > added else [] for piece in pieces], is_cut


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

    The targets of the sequence are the tokens of the target text. The source is cut at ``max_length`` and the
    target one token shorter, since the decoder's input begins with a start token. A target ends with the
    end-of-sequence token. There is no sequence for an example whose source or target has no token.
    """
    sources, is_source_cut = _encode_texts(examples, tokenizer, cutting)
    targets, is_target_cut = _encode_targets([example.target for example in examples], tokenizer, cutting)
    sequences = []
    for pieces, target in zip(sources, targets, strict=True):
        sequences.append([_pair(pieces[0].tokens, target)] if pieces and target else [])
    # The note gives a share of the examples, so an example counts once, whichever side is cut.
    return sequences, sum(map(any, zip(is_source_cut, is_target_cut, strict=True)))


def _encode_targets(
    texts: Sequence[str], tokenizer: Any, cutting: Cutting
) -> tuple[list[list[int]], list[bool]]:
    """Tokens of each target text, and whether it was truncated."""
    options = {"add_special_tokens": cutting.special_tokens, "verbose": False}
    encoded = tokenizer(text_target=list(texts), **options)["input_ids"]
    end = tokenizer.eos_token_id if cutting.special_tokens else None
    added, longest = len(cutting.before) + len(cutting.after), cutting.max_length - 1
    targets, is_cut = [], []
    for tokens in encoded:
        ending = [] if end is None else [end]
        body = tokens[:-1] if tokens[-1:] == ending and ending else tokens
        space = longest - len(ending)
        is_cut.append(len(body) > space)
        targets.append([*body[:space], *ending] if len(tokens) > added else [])
    return targets, is_cut


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

    S differs from the inputs' width T, so that their masks can be distinguished by shape.
    """
    completions = [batch.split.completion_of(int(index)) for index in batch.indices]
    longest = max((len(completion) for completion in completions), default=1)
    width = longest + (longest == batch.ids_BT.shape[1])
    labels_BS = np.full((len(completions), width), IGNORED, dtype=np.int64)
    for row, completion in enumerate(completions):
        labels_BS[row, : len(completion)] = completion
    return labels_BS


def labels_of_last_tokens(batch: PaddedBatch) -> np.ndarray:
    """Label of the last token of each sequence (B,), from the split's ``targets``."""
    labels = [batch.split.targets_of(int(index))[-1] for index in batch.indices]
    return np.asarray(labels, dtype=np.int64)


def last_target(width: int) -> Piece:
    """A sequence of ``width`` tokens, whose last one is a target."""
    return Piece([1] * width, [IGNORED] * (width - 1) + [1])


def unchanged(example: Example) -> Example:
    """``example`` itself, which two kinds can use."""
    return example


def _tokens_after_the_first(split: TokenSplit) -> int:
    return int((split.lengths_N - 1).sum())


_NOT_ONE_TOKEN = "objects are not exactly one known token of the tokenizer and were left out"
DATA_KINDS: dict[str, DataKind] = {
    CLASSIFICATION: DataKind(
        "the class of a sentence or text",
        encode_texts,
        labels_of_sequences,
        layouts=LABELLED_TEXT,
    ),
    LANGUAGE_MODELLING: DataKind(
        "the next token of a document",
        encode_windows,
        labels_of_next_tokens,
        layouts=PLAIN_TEXT,
        predicted_tokens=_tokens_after_the_first,
    ),
    SEQUENCE_TO_SEQUENCE: DataKind(
        "the target text of a source text",
        encode_pairs,
        labels_of_completions,
        layouts=SOURCE_AND_TARGET,
        inputs=prompt_part,
        lengths=longer_part,
        full=full_pair,
        reads={INSTRUCTION: target_of_dialogue},
    ),
    INSTRUCTION: DataKind(
        "the assistant's answers in a dialogue",
        encode_dialogues,
        labels_of_tokens,
        layouts=INSTRUCTIONS,
        notes=notes_of_dialogues,
        left_out="dialogues have no answer within max_length and were left out",
        reads={SEQUENCE_TO_SEQUENCE: dialogue_of_target},
    ),
    QUESTION_ANSWERING: DataKind(
        "the part of a context that answers a question",
        encode_questions,
        labels_of_tokens,
        layouts=QUESTIONS,
        left_out="questions leave no space for context in max_length and were left out",
        record=record_of_question,
        merge=rows_of_questions,
    ),
    PROBING: DataKind(
        "the one token that continues a prompt",
        encode_facts,
        labels_of_last_tokens,
        layouts=FACTS,
        left_out=_NOT_ONE_TOKEN,
    ),
    MASKED_PROBING: DataKind(
        "the one token that a mask after a prompt stands for",
        encode_masked_facts,
        labels_of_tokens,
        full=last_target,
        left_out=_NOT_ONE_TOKEN,
        reads={PROBING: unchanged},
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
