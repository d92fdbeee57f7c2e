"""Tokens that stand for parts of a text that the tokenizer does not know: many of them give a note."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOST = 0.2  # share of unknown tokens; text in the tokenizer's own languages has a few per cent


def unknown_id(tokenizer: Any) -> int | None:
    """Id of the unknown token; None if there is none or it has another use, as GPT-2's, which ends texts."""
    unknown: int | None = getattr(tokenizer, "unk_token_id", None)
    others = ("bos", "eos", "pad", "sep", "cls", "mask")
    is_shared = unknown in [getattr(tokenizer, f"{name}_token_id", None) for name in others]
    return None if is_shared else unknown


def unknown_note(shares: Mapping[str, float], tokenizer: Any) -> tuple[str, ...]:
    """Note on the splits that consist of unknown tokens to a large part; ``shares`` is by split."""
    many = [f"{share:.0%} of {split}" for split, share in shares.items() if share > _MOST]
    if not many:
        return ()
    listed = ", ".join(many).replace("%", " %")
    return (
        f"many tokens are unknown to the tokenizer ({tokenizer.unk_token}): {listed}; the model cannot tell "
        "these words apart; give one whose tokenizer knows the language of the texts",
    )
