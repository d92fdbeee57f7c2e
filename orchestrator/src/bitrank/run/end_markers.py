"""The token that ends the completions of a split, such as ``<end_of_turn>`` of a chat template.

A chat template closes an answer with a token of its own, which is often not the tokenizer's token for the end
of a text (Gemma, and ChatML on tokenizers of base models). Training teaches the model to close its answer
with it, so generation must stop there. Neither the tokenizer nor a split names the token: it is read from the
completions.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from bitrank_data import TokenSplit


def end_marker(split: TokenSplit, tokenizer: Any) -> int | None:
    """Id of the token that ends every whole completion of ``split``; None if there is no such token.

    A completion is the last run of targets. Its last token counts, or the one before white space at its end.
    The token must be a special or an added one of ``tokenizer``: answers that all end with a full stop have
    no marker. Added tokens that are not special may be text, such as line ends and HTML tags of Gemma, so
    they must not occur before the end of any completion: stopping there would shorten texts.

    Completions that may be cut are not asked: a cut sequence has the length limit, so it is the longest of
    its split, and every shorter one is whole. If all are of one length, all are asked.
    """
    lengths_N = split.lengths_N
    whole = np.flatnonzero(lengths_N < lengths_N.max())
    asked = whole if len(whole) else np.arange(len(split))
    last = {_last_token(split.last_answer(int(index))[1], tokenizer) for index in asked}
    if len(last) > 1:
        return None
    (marker,) = last
    # Any text may end with an unknown word.
    if marker is None or marker == tokenizer.unk_token_id:
        return None
    added = tokenizer.added_tokens_decoder.get(marker)
    if marker in tokenizer.all_special_ids or (added is not None and added.special):
        return marker
    return None if added is None or _is_in_a_text(marker, split, tokenizer) else marker


def ending_ids(tokenizer: Any, marker: int | None) -> tuple[int, ...]:
    """Ids at which generation stops: the tokenizer's end of a text, and ``marker``; those that exist."""
    return tuple(dict.fromkeys(token for token in (tokenizer.eos_token_id, marker) if token is not None))


def before_end(tokens: np.ndarray, ends: Collection[int]) -> np.ndarray:
    """``tokens`` before the first of ``ends``; all of them if they have none."""
    places = np.flatnonzero(np.isin(tokens, list(ends)))
    return tokens[: places[0]] if len(places) else tokens


def without_marker(completion: np.ndarray, marker: int | None) -> np.ndarray:
    """``completion`` before its last ``marker``; all of it if it has none, as a cut one."""
    if marker is None:
        return completion
    places = np.flatnonzero(completion == marker)
    return completion[: places[-1]] if len(places) else completion


def _last_token(completion: np.ndarray, tokenizer: Any) -> int | None:
    """The last token of ``completion`` that is no white space; None if all are."""
    for token in reversed(completion.tolist()):
        if tokenizer.decode([token], skip_special_tokens=False).strip():
            return int(token)
    return None


def _is_in_a_text(marker: int, split: TokenSplit, tokenizer: Any) -> bool:
    """Whether text follows the first ``marker`` of a completion."""
    for index in range(len(split)):
        completion = split.last_answer(index)[1]
        after = completion[len(before_end(completion, (marker,))) + 1 :]
        if _last_token(after, tokenizer) is not None:
            return True
    return False
