"""Token sequences of instruction data, with targets on the tokens of the assistant's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitrank_data.examples import Example
from bitrank_data.sequences import IGNORED, Cutting, Piece
from bitrank_data.templates import Text, has_chat_template, template_note, texts_of


def encode_dialogues(
    examples: Sequence[Example], tokenizer: Any, cutting: Cutting
) -> tuple[list[list[Piece]], int]:
    """One sequence per dialogue, cut at ``max_length``; none without a token of an answer.

    ``targets`` is the token itself for tokens of answers and :data:`~bitrank_data.sequences.IGNORED` for
    others. Chat templates write the special tokens themselves; with a default template the sequence begins
    with those that the tokenizer puts before a text.
    """
    texts = [texts_of(example, tokenizer) for example in examples]  # type: ignore[arg-type]
    before = () if has_chat_template(tokenizer) else cutting.before
    encoded = iter(_tokens([text for several in texts for text in several], tokenizer))
    pieces: list[list[Piece]] = []
    cut = 0
    for several in texts:
        sequences = [next(encoded) for _ in several]
        sequences = [([*before, *tokens], [IGNORED] * len(before) + targets) for tokens, targets in sequences]
        cut += any(len(tokens) > cutting.max_length for tokens, _ in sequences)
        kept = [_piece(tokens, targets, cutting.max_length) for tokens, targets in sequences]
        pieces.append([piece for piece in kept if piece is not None])
    return pieces, cut


def notes_of_dialogues(example: Example, tokenizer: Any) -> tuple[str, ...]:
    """How the texts of a task with examples like ``example`` are built."""
    return (template_note(example, tokenizer),)  # type: ignore[arg-type]


def _piece(tokens: list[int], targets: list[int], max_length: int) -> Piece | None:
    """A cut sequence; None if nothing is predicted in it. The first token has no predecessor."""
    targets = [IGNORED, *targets[1:max_length]]
    if all(target == IGNORED for target in targets):
        return None
    return Piece(tokens[:max_length], targets)


def _tokens(texts: Sequence[Text], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Tokens and targets of each text.

    A text is tokenized as a whole. If a token crosses the border of an answer, or the tokenizer has no
    offsets, its segments are tokenized one by one: then the prompt has the tokens that it has alone.
    """
    options = {"add_special_tokens": False, "verbose": False}
    whole = [_joined(text) for text in texts]
    if not getattr(tokenizer, "is_fast", False):
        return [_by_segment(text, tokenizer, options) for text in texts]
    encoded = tokenizer(whole, return_offsets_mapping=True, **options)
    found = []
    for text, tokens, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        inside = _answered(text, offsets)
        if inside is None:
            found.append(_by_segment(text, tokenizer, options))
            continue
        targets = [token if answer else IGNORED for token, answer in zip(tokens, inside, strict=True)]
        found.append((list(tokens), targets))
    return found


def _joined(text: Text) -> str:
    return "".join(segment.text for segment in text)


def _answered(text: Text, offsets: Sequence[tuple[int, int]]) -> list[bool] | None:
    """Whether each token is of an answer; None if a token crosses a border.

    A token begins where the one before it ends: some tokenizers of bytes give the offsets of ``Ġyes`` without
    its space (``trim_offsets``). With a tokenizer that drops white space, the word after it crosses a border
    between them too, and its segments have the same tokens one by one.
    """
    borders, flags, end = [], [], 0
    for segment in text:
        if not segment.text:
            continue
        end += len(segment.text)
        borders.append(end)
        flags.append(segment.is_answer)
    inside, place, covered = [], 0, 0
    for start, stop in offsets:
        start, covered = min(start, covered), max(covered, stop)
        while place < len(borders) - 1 and start >= borders[place]:
            place += 1
        if stop > borders[place] and flags[place] != flags[min(place + 1, len(flags) - 1)]:
            return None
        inside.append(flags[place])
    return inside


def _by_segment(text: Text, tokenizer: Any, options: dict[str, bool]) -> tuple[list[int], list[int]]:
    tokens: list[int] = []
    targets: list[int] = []
    for segment in text:
        if segment.text:
            part = list(tokenizer(segment.text, **options)["input_ids"])
            tokens += part
            targets += part if segment.is_answer else [IGNORED] * len(part)
    return tokens, targets
