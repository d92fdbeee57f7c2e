"""Special tokens that a tokenizer adds to the text or pair of texts of one sequence."""

from __future__ import annotations

from typing import Any

from bitrank_data.errors import DataError
from bitrank_data.sequences import Cutting


def special_tokens_around(tokenizer: Any, cutting: Cutting, pairs: bool) -> int:
    """Number of special tokens in the sequence of a text, or of two texts with ``pairs``.

    Raises :class:`DataError` if no text fits beside those of a pair, which are more than those of a text that
    ``cutting`` has: tokenizers do not truncate then.
    """
    if not pairs or not cutting.special_tokens:
        return len(cutting.before) + len(cutting.after)
    added = int(tokenizer.num_special_tokens_to_add(pair=True))
    if cutting.max_length <= added:
        raise DataError(
            f"max_length {cutting.max_length} leaves no token for text beside the {added} special tokens of "
            f"a pair; give {added + 1} or more"
        )
    return added
