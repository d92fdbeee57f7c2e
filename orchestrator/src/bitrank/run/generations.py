"""What a trained model says, to be read beside what the others say: the same prompts continued by every arm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bitrank_data import TokenSplit

_PROMPTS, _GIVEN, _NEW = 3, 24, 24  # prompts, tokens of each, and tokens that the model adds


def save_generations(
    kind: str,
    model: Any,
    tokenizer: Any,
    split: TokenSplit,
    device: str,
    keep: Callable[[list[dict[str, str]]], None],
) -> list[str]:
    """What is to be read of a run: a language model's continuations, given to ``keep``; a classifier's texts,
    returned to stand beside its predictions."""
    if kind == "classification":
        return texts_of(split, tokenizer)
    keep(continuations(model, tokenizer, split, device))
    return []


def texts_of(split: TokenSplit, tokenizer: Any) -> list[str]:
    """The text of every sequence of ``split``, as far as its tokens tell it."""
    texts: list[str] = tokenizer.batch_decode(
        [split.sequence(i) for i in range(len(split))], skip_special_tokens=True
    )
    return texts


def continuations(model: Any, tokenizer: Any, split: TokenSplit, device: str) -> list[dict[str, str]]:
    """Prompt and greedy continuation of the beginnings of the first documents of ``split``."""
    prompts_PT = torch.tensor(
        [split.sequence(i)[:_GIVEN].tolist() for i in _beginnings(split)], device=device
    )
    was_training = model.training
    model.eval()
    with torch.no_grad():
        whole = model.generate(
            input_ids=prompts_PT,
            attention_mask=torch.ones_like(prompts_PT),
            max_new_tokens=_NEW,
            do_sample=False,
            pad_token_id=model.config.pad_token_id,
        )
    model.train(was_training)
    given = tokenizer.batch_decode(prompts_PT, skip_special_tokens=True)
    added = tokenizer.batch_decode(whole[:, prompts_PT.shape[1] :], skip_special_tokens=True)
    return [{"prompt": prompt, "continuation": text} for prompt, text in zip(given, added, strict=True)]


def _beginnings(split: TokenSplit) -> list[int]:
    """The first window of each of the first documents that are long enough to make a prompt."""
    seen: dict[str, int] = {}
    for index, document in enumerate(split.ids):
        if document not in seen and len(split.sequence(index)) >= _GIVEN:
            seen[document] = index
        if len(seen) == _PROMPTS:
            break
    return list(seen.values()) or [0]
