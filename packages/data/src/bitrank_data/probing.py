"""Probing for facts: a prompt, and the one token that continues it (LAMA, Petroni et al. 2019).

The score of an example is the rank of the right token among the whole vocabulary, ordered by the next-token
logits of a decoder, or by the logits of an encoder at a mask token after the prompt. Objects of more than one
token have no rank; they are left out and counted, as in LAMA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitrank_data.errors import DataError
from bitrank_data.examples import Example
from bitrank_data.fields import text_field
from bitrank_data.layouts import Layout, text_of
from bitrank_data.sequences import IGNORED, Cutting, Encoded, Piece

_PROMPT, _OBJECT = "prompt", "object"


@dataclass(frozen=True)
class FactExample(Example):
    """A prompt, ``text``, and the word that continues it, ``object``."""

    object: str = ""


def read_fact(id_: str, fields: Mapping[str, Any]) -> FactExample:
    """Example ``id_`` from the fields ``prompt`` and ``object``.

    A whole number is an object too. Raises :class:`~bitrank_data.fields.FieldError` for an empty or missing
    text.
    """
    fields = _with_text(fields)
    return _example(id_, None, text_field(fields, _PROMPT), text_field(fields, _OBJECT))


def _example(id: str, label: int | None, prompt: str, object: str) -> FactExample:
    """Example of stored fields."""
    return FactExample(id, prompt, label, object.strip())


def _fields_of_cells(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the example of a user's row."""
    cells = _with_text(cells)
    return {role: text_of(cells, role) for role in (_PROMPT, _OBJECT)}


def _with_text(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """``fields`` with an object that is a whole number as text."""
    value = fields.get(_OBJECT)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return {**fields, _OBJECT: str(value)} if is_number else fields


def encode_facts(examples: Sequence[Any], tokenizer: Any, cutting: Cutting) -> Encoded:
    """The prompt of each :class:`FactExample`, its last ``max_length`` tokens; the last target is the object.

    There is no sequence for an object that is not exactly one known token after the prompt and a space.
    """
    space = cutting.max_length - len(cutting.before)
    sequences: list[list[Piece]] = []
    cut = 0
    for fact in _single_tokens(examples, tokenizer):
        if fact is None:
            sequences.append([])
            continue
        prompt, target = fact
        cut += len(prompt) > space
        tokens = [*cutting.before, *prompt[-space:]]
        sequences.append([Piece(tokens, [IGNORED] * (len(tokens) - 1) + [target])])
    return sequences, cut


def encode_masked_facts(examples: Sequence[Any], tokenizer: Any, cutting: Cutting) -> Encoded:
    """The prompt of each :class:`FactExample`, a mask token and a full stop; the mask's target is the object.

    Masked language models expect whole sentences: without a full stop they predict one for the mask. A prompt
    that is too long keeps its end. There is no sequence for an object that is not exactly one known token
    after the prompt and a space. Raises :class:`DataError` for a tokenizer without a mask token.
    """
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is None:
        raise DataError(
            "the tokenizer has no mask token, which stands for the object of a fact; give a masked language "
            "model such as bert-base-uncased with its own tokenizer"
        )
    stop = tokenizer(".", add_special_tokens=False)["input_ids"]
    ending = [*(stop if tokenizer.unk_token_id not in stop else []), *cutting.after]
    space = cutting.max_length - len(cutting.before) - 1 - len(ending)
    if space < 1:
        needed = cutting.max_length - space + 1
        raise DataError(
            f"max_length {cutting.max_length} leaves no token for a prompt beside the mask; give {needed}"
        )
    sequences: list[list[Piece]] = []
    cut = 0
    for fact in _single_tokens(examples, tokenizer):
        if fact is None:
            sequences.append([])
            continue
        prompt, target = fact
        cut += len(prompt) > space
        start = [*cutting.before, *prompt[-space:]]
        targets = [IGNORED] * len(start) + [target] + [IGNORED] * len(ending)
        sequences.append([Piece([*start, mask, *ending], targets)])
    return sequences, cut


def _single_tokens(examples: Sequence[Any], tokenizer: Any) -> list[tuple[list[int], int] | None]:
    """Tokens of each prompt, and that of its object; None if the object is not exactly one known token."""
    prompts = [example.text.rstrip() for example in examples]
    wholes = [f"{prompt} {example.object}" for prompt, example in zip(prompts, examples, strict=True)]
    options = {"add_special_tokens": False, "truncation": False, "verbose": False}
    encoded = (tokenizer(texts, **options)["input_ids"] for texts in (prompts, wholes))
    facts: list[tuple[list[int], int] | None] = []
    for prompt, whole in zip(*encoded, strict=True):
        is_one_token = len(prompt) > 0 and whole[:-1] == prompt and whole[-1] != tokenizer.unk_token_id
        facts.append((prompt, whole[-1]) if is_one_token else None)
    return facts


FACTS = (Layout({_PROMPT: _PROMPT, _OBJECT: _OBJECT}, _fields_of_cells, _example),)
