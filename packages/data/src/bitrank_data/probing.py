"""Probing for facts: a prompt, and the one token that continues it (LAMA, Petroni et al. 2019).

The score of an example is the rank of the right token among the whole vocabulary, ordered by the next-token
logits of a language model. Objects of more than one token have no rank; they are left out and counted, as in
LAMA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    prompts = [example.text.rstrip() for example in examples]
    wholes = [f"{prompt} {example.object}" for prompt, example in zip(prompts, examples, strict=True)]
    options = {"add_special_tokens": False, "truncation": False, "verbose": False}
    encoded = (tokenizer(texts, **options)["input_ids"] for texts in (prompts, wholes))
    space = cutting.max_length - len(cutting.before)
    sequences: list[list[Piece]] = []
    cut = 0
    for prompt, whole in zip(*encoded, strict=True):
        is_one_token = len(prompt) > 0 and whole[:-1] == prompt and whole[-1] != tokenizer.unk_token_id
        if not is_one_token:
            sequences.append([])
            continue
        cut += len(prompt) > space
        tokens = [*cutting.before, *prompt[-space:]]
        sequences.append([Piece(tokens, [IGNORED] * (len(tokens) - 1) + [whole[-1]])])
    return sequences, cut


FACTS = (Layout({_PROMPT: _PROMPT, _OBJECT: _OBJECT}, _fields_of_cells, _example),)
