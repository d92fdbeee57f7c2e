"""Sample outputs for comparison between configs: every trained model continues the same prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from bitrank_data import TokenSplit

from bitrank.errors import unknown
from bitrank.spec.task_kinds import task_kind

_PROMPTS = 3
_PROMPT_TOKENS = 24
_NEW_TOKENS = 24


@dataclass(frozen=True)
class Samples:
    """Texts of a run for reading.

    ``texts`` has one text per sequence and becomes a column of the predictions table. ``continuations`` has
    rows with the keys ``prompt`` and ``continuation``. Either may be empty.
    """

    texts: list[str] = field(default_factory=list)
    continuations: list[dict[str, str]] = field(default_factory=list)


def save_generations(
    kind: str,
    model: Any,
    tokenizer: Any,
    split: TokenSplit,
    device: str,
    keep: Callable[[list[dict[str, str]]], None],
) -> list[str]:
    """Sample what the kind of task asks for: pass continuations to ``keep``, return texts.

    Raises :class:`~bitrank.errors.UserError` if :data:`SAMPLES` has no such entry.
    """
    name = task_kind(kind).samples
    if name not in SAMPLES:
        raise unknown("sampling of texts", name, SAMPLES)
    samples = SAMPLES[name](model, tokenizer, split, device)
    if samples.continuations:
        keep(samples.continuations)
    return samples.texts


def texts_of(split: TokenSplit, tokenizer: Any) -> list[str]:
    """Decode every sequence of ``split``, without special tokens."""
    texts: list[str] = tokenizer.batch_decode(
        [split.sequence(i) for i in range(len(split))], skip_special_tokens=True
    )
    return texts


def continuations(model: Any, tokenizer: Any, split: TokenSplit, device: str) -> list[dict[str, str]]:
    """Continue the first tokens of the first documents of ``split`` by greedy decoding.

    Each row has the keys ``prompt`` and ``continuation``.
    """
    prompts_PT = torch.tensor(
        [split.sequence(i)[:_PROMPT_TOKENS].tolist() for i in _beginnings(split)], device=device
    )
    was_training = model.training
    model.eval()
    with torch.no_grad():
        whole_PT = model.generate(
            input_ids=prompts_PT,
            attention_mask=torch.ones_like(prompts_PT),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            pad_token_id=model.config.pad_token_id,
        )
    model.train(was_training)
    prompts = tokenizer.batch_decode(prompts_PT, skip_special_tokens=True)
    texts = tokenizer.batch_decode(whole_PT[:, prompts_PT.shape[1] :], skip_special_tokens=True)
    return [{"prompt": prompt, "continuation": text} for prompt, text in zip(prompts, texts, strict=True)]


def _beginnings(split: TokenSplit) -> list[int]:
    """Indices of the first window of the first documents that are long enough for a prompt."""
    seen: dict[str, int] = {}
    for index, document in enumerate(split.ids):
        if document not in seen and len(split.sequence(index)) >= _PROMPT_TOKENS:
            seen[document] = index
        if len(seen) == _PROMPTS:
            break
    return list(seen.values()) or [0]


# Texts of a run by name: (model, tokenizer, test split, device) → texts.
SAMPLES: dict[str, Callable[[Any, Any, TokenSplit, str], Samples]] = {
    "none": lambda model, tokenizer, split, device: Samples(),
    "texts": lambda model, tokenizer, split, device: Samples(texts=texts_of(split, tokenizer)),
    "continuations": lambda model, tokenizer, split, device: Samples(
        continuations=continuations(model, tokenizer, split, device)
    ),
}
