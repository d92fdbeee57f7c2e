"""Texts of a trained model: continuations to read, and generated texts with scores for evaluation.

Generation is greedy and deterministic. It works on every split whose sequences have a prompt and a
completion, the last run of targets, such as the last answer of a dialogue: encoder-decoders read the prompt
in the encoder, decoders continue it. A text ends at the tokenizer's end of a text, and with decoders at the
token that closes the completions (:mod:`bitrank.run.end_markers`). Texts are generated in batches of prompts
of similar length, with cached keys.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from bitrank_data import TokenSplit
from torch import Tensor
from transformers import GenerationConfig

from bitrank.errors import UserError, unknown
from bitrank.models.positions import table_limit
from bitrank.run.end_markers import before_end, end_marker, ending_ids, without_marker
from bitrank.run.text_scores import Scored, score_texts
from bitrank.spec.task_kinds import Generation, task_kind

_PROMPTS = 3
_PROMPT_TOKENS = 24
_NEW_TOKENS = 24
_BATCH_TOKENS = 4096  # tokens of prompts and generated texts of one batch, with padding


@dataclass(frozen=True)
class Samples:
    """Texts of a run, for reading and for evaluation.

    ``columns`` have one value per sequence and become columns of the predictions table. ``continuations`` has
    rows with the keys ``prompt`` and ``continuation``. ``figures`` are metrics over all texts.
    ``tokens_per_second`` is the speed of generation, and ``seconds`` its duration. Each may be empty.
    """

    columns: dict[str, list[Any]] = field(default_factory=dict)
    continuations: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None
    seconds: float | None = None

    def __or__(self, other: Samples) -> Samples:
        return Samples(
            self.columns | other.columns,
            [*self.continuations, *other.continuations],
            self.figures | other.figures,
            other.tokens_per_second or self.tokens_per_second,
            other.seconds or self.seconds,
        )


@dataclass(frozen=True)
class Generated:
    """Generated texts in the order of the split, their number of ``tokens``, and the ``seconds`` taken."""

    texts: list[str]
    tokens: int
    seconds: float


def sample_texts(kind: str, model: Any, tokenizer: Any, split: TokenSplit, device: str) -> Samples:
    """The texts that runs of ``kind`` save: by :data:`SAMPLES`, and by the kind's generation.

    Raises :class:`~bitrank.errors.UserError` if :data:`SAMPLES` has no such entry, or a score's library is
    not installed.
    """
    entry = task_kind(kind)
    if entry.samples not in SAMPLES:
        raise unknown("sampling of texts", entry.samples, SAMPLES)
    samples = SAMPLES[entry.samples](model, tokenizer, split, device)
    if entry.generation is None:
        return samples
    return samples | scored_texts(model, tokenizer, split, device, entry.generation)


def scored_texts(
    model: Any, tokenizer: Any, split: TokenSplit, device: str, generation: Generation
) -> Samples:
    """Generate from every prompt of ``split`` and compare each text with its completion.

    The reference is the completion as tokenized, without its end marker, so it may be cut at ``max_length``.
    Columns: ``text`` (the prompt), ``reference_text``, ``prediction_text``, and those of the scores.
    """
    sequences = range(len(split))
    prompts = tokenizer.batch_decode([_prompt(split, i) for i in sequences], skip_special_tokens=True)
    marker = _marker(model, split, tokenizer)
    bare = [without_marker(_completion(split, i), marker) for i in sequences]
    references = [text.strip() for text in tokenizer.batch_decode(bare, skip_special_tokens=True)]
    made = generate(model, tokenizer, split, device, generation.longest)
    scored: Scored = score_texts(generation.scores, made.texts, references)
    columns = {"text": prompts, "reference_text": references, "prediction_text": made.texts}
    return Samples(
        columns={**columns, **scored.columns},
        figures=scored.figures,
        tokens_per_second=made.tokens / made.seconds,
        seconds=made.seconds,
    )


def generate(model: Any, tokenizer: Any, split: TokenSplit, device: str, longest: int) -> Generated:
    """Greedy texts for the prompt of every sequence of ``split``, with cached keys.

    A text has at most as many tokens as the longest completion of the split, ``longest``, and the model's
    positions allow: one bound for all models that are compared on the split. Prompts of a decoder are padded
    on the left, so that all texts of a batch begin at the same position. Raises
    :class:`~bitrank.errors.UserError` if the model has no position after a prompt.
    """
    new_tokens = _within_positions(model, split, _new_tokens(split, longest))
    ends = ending_ids(tokenizer, _marker(model, split, tokenizer))
    was_training = model.training
    model.eval()
    texts: dict[int, str] = {}
    tokens = 0
    started = time.perf_counter()
    with torch.no_grad(), _contiguous_head_input(model):
        for indices in _prompt_batches(split, new_tokens):
            ids_BT, mask_BT = _padded_prompts(model, split, indices, device)
            made_BS = _greedy(model, ends, ids_BT, mask_BT, new_tokens).cpu().numpy()
            bare = [before_end(made_S, ends) for made_S in made_BS]
            tokens += sum(min(len(made_S) + 1, made_BS.shape[1]) for made_S in bare)
            found = tokenizer.batch_decode(bare, skip_special_tokens=True)
            texts |= {int(index): text.strip() for index, text in zip(indices, found, strict=True)}
    seconds = time.perf_counter() - started
    model.train(was_training)
    return Generated([texts[index] for index in range(len(split))], tokens, seconds)


def generation_shapes(split: TokenSplit, longest: int) -> tuple[frozenset[tuple[int, int]], int]:
    """Distinct shapes (B, T) of batches of prompts in :func:`generate`, and the bound of a text's tokens.

    The bound is that of a model without a table of positions.
    """
    new_tokens = _new_tokens(split, longest)
    shapes = (
        (len(indices), max(len(_prompt(split, int(index))) for index in indices))
        for indices in _prompt_batches(split, new_tokens)
    )
    return frozenset(shapes), new_tokens


def _new_tokens(split: TokenSplit, longest: int) -> int:
    return min(longest, max(len(_completion(split, i)) for i in range(len(split))))


def _prompt(split: TokenSplit, index: int) -> np.ndarray:
    return split.last_answer(index)[0]


def _completion(split: TokenSplit, index: int) -> np.ndarray:
    return split.last_answer(index)[1]


def _marker(model: Any, split: TokenSplit, tokenizer: Any) -> int | None:
    """The token that closes completions; None for encoder-decoders, whose targets end as the tokenizer's."""
    return None if model.config.is_encoder_decoder else end_marker(split, tokenizer)


def _within_positions(model: Any, split: TokenSplit, new_tokens: int) -> int:
    """``new_tokens``, or fewer if a table of positions ends before."""
    limit = table_limit(model)
    if limit is None:
        return new_tokens
    read = 1 if model.config.is_encoder_decoder else max(len(_prompt(split, i)) for i in range(len(split)))
    if read >= limit:
        raise UserError(
            f"a prompt of {read} tokens leaves no position for a text: the model has {limit} positions; give "
            f"a smaller max_length, or shorter prompts"
        )
    return min(new_tokens, limit - read)


def _prompt_batches(split: TokenSplit, new_tokens: int) -> Iterator[np.ndarray]:
    """Indices of prompts of similar length, longest first."""
    lengths_N = np.array([len(_prompt(split, i)) for i in range(len(split))])
    order = np.argsort(-lengths_N, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, _BATCH_TOKENS // (int(lengths_N[order[start]]) + new_tokens))
        yield order[start : start + size]
        start += size


@contextmanager
def _contiguous_head_input(model: Any) -> Iterator[None]:
    """Copy the input of the output head (B, 1, D), which transformers cuts from all positions of a prompt.

    For an input of three dimensions that is not contiguous, ``torch.nn.functional.linear`` copies the weight
    once for each sequence: 16 prompts of SmolLM2 took 900 MB.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, arguments: (arguments[0].contiguous(), *arguments[1:]))
    try:
        yield
    finally:
        hook.remove()


def _padded_prompts(model: Any, split: TokenSplit, indices: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) of prompts; an encoder is padded right, as it numbers positions from the left."""
    prompts = [_prompt(split, int(index)) for index in indices]
    width = max(len(prompt) for prompt in prompts)
    ids_BT = np.full((len(prompts), width), model.config.pad_token_id, dtype=np.int64)
    mask_BT = np.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        place = (
            slice(0, len(prompt)) if model.config.is_encoder_decoder else slice(width - len(prompt), width)
        )
        ids_BT[row, place] = prompt
        mask_BT[row, place] = 1
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(mask_BT).to(device)


def _greedy(model: Any, ends: tuple[int, ...], ids_BT: Tensor, mask_BT: Tensor, new_tokens: int) -> Tensor:
    """The generated ids (B, S), without prompt and start token."""
    with _plain_settings(model, ends, new_tokens):
        made_BT: Tensor = model.generate(
            input_ids=ids_BT, attention_mask=mask_BT, generation_config=model.generation_config
        )
    return made_BT[:, 1 if model.config.is_encoder_decoder else ids_BT.shape[1] :]


@contextmanager
def _plain_settings(model: Any, ends: tuple[int, ...], new_tokens: int) -> Iterator[None]:
    """Let ``model`` decode greedily, by no setting of its checkpoint's ``generation_config.json``.

    All models are to decode alike: a file may ban tokens, force others, penalize repetitions or ask for
    beams. transformers fills what a given config leaves open from the model's own, so the own one is
    replaced. Of the special tokens an encoder-decoder needs its start token; that of the model's config is
    the one that training shifts targets by. A forced first or last token (BART, mBART) is not set: targets
    hold both, so training teaches them, and a forced one would hide that a model has lost them.
    """
    own = model.generation_config
    start = getattr(model.config, "decoder_start_token_id", None)
    model.generation_config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=model.config.pad_token_id,
        eos_token_id=list(ends) or None,
        decoder_start_token_id=own.decoder_start_token_id if start is None else start,
    )
    try:
        yield
    finally:
        model.generation_config = own


def texts_of(split: TokenSplit, tokenizer: Any) -> list[str]:
    """Decode every sequence of ``split``, without special tokens."""
    texts: list[str] = tokenizer.batch_decode(
        [split.sequence(i) for i in range(len(split))], skip_special_tokens=True
    )
    return texts


def continuations(model: Any, tokenizer: Any, split: TokenSplit, device: str) -> list[dict[str, str]]:
    """Continue the first tokens of the first documents of ``split`` by greedy decoding.

    Each row has the keys ``prompt`` and ``continuation``. With a table of positions that is shorter than
    both, each takes half of it.
    """
    limit = table_limit(model) or _PROMPT_TOKENS + _NEW_TOKENS
    prompt_tokens, new_tokens = min(_PROMPT_TOKENS, limit // 2), min(_NEW_TOKENS, limit // 2)
    prompts_PT = torch.tensor(
        [split.sequence(i)[:prompt_tokens].tolist() for i in _beginnings(split)], device=device
    )
    was_training = model.training
    model.eval()
    with torch.no_grad(), _contiguous_head_input(model):
        mask_PT = torch.ones_like(prompts_PT)
        made_PS = _greedy(model, ending_ids(tokenizer, None), prompts_PT, mask_PT, new_tokens)
    model.train(was_training)
    prompts = tokenizer.batch_decode(prompts_PT, skip_special_tokens=True)
    texts = tokenizer.batch_decode(made_PS, skip_special_tokens=True)
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
    "texts": lambda model, tokenizer, split, device: Samples(columns={"text": texts_of(split, tokenizer)}),
    "continuations": lambda model, tokenizer, split, device: Samples(
        continuations=continuations(model, tokenizer, split, device)
    ),
}
