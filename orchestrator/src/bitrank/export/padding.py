"""A merged classifier reads the same token in plain transformers as it did in its run.

A decoder that classifies reads the last token of a text. A run finds it by the attention mask, transformers
by its id: the last one that is not ``config.pad_token_id``. Where texts end in the id that pads (a tokenizer
that appends its end-of-sequence token and pads with it), transformers reads one token earlier, and every
prediction is another. So such a model is saved with a padding token that no text ends in.
"""

from __future__ import annotations

from typing import Any

from bitrank_data import TokenisedTask
from bitrank_trainer import last_token_head

from bitrank.errors import UserError
from bitrank.models.padding import use_padding


def separate_padding(model: Any, tokenizer: Any, task: TokenisedTask) -> str | None:
    """Give ``model`` and ``tokenizer`` another padding token where a text of ``task`` ends in theirs.

    A sentence on it, or None where nothing was to do. Raises :class:`UserError` where texts end in every
    special token that could pad.
    """
    if last_token_head(model) is None:
        return None
    ends = _last_tokens(task)
    if task.pad_id not in ends:
        return None
    rows = model.config.get_text_config().vocab_size
    special = [number for number in tokenizer.all_special_ids if number not in ends and number < rows]
    old = tokenizer.convert_ids_to_tokens(task.pad_id)
    if not special:
        raise UserError(
            f"texts end in {old!r}, which pads, and transformers would read the token before it; the tokenizer has no "
            "other special token to pad with: add one to the base model and its tokenizer, and train again"
        )
    tokenizer.pad_token = new = tokenizer.convert_ids_to_tokens(special[0])
    use_padding(model, special[0])
    return f"texts end in {old!r}, which padded: saved with {new!r} as padding, so that transformers reads their last token"


def _last_tokens(task: TokenisedTask) -> set[int]:
    return {int(number) for split in task.splits.values() for number in split.tokens[split.offsets[1:] - 1]}
