"""Choose a padding token with which transformers classifies by the same token as the run.

A decoder classifies by the last token of a text. A run finds it by the attention mask, transformers by the
last id that is not ``config.pad_token_id``. If texts end in the padding id (a tokenizer that appends its
end-of-sequence token and pads with it), transformers uses the token before it, and predictions differ. So
such a model is saved with a padding token that no text ends in.
"""

from __future__ import annotations

from typing import Any

from bitrank_data import TokenisedTask
from bitrank_trainer import last_token_head

from bitrank.errors import UserError
from bitrank.models.padding import use_padding


def separate_padding(model: Any, tokenizer: Any, task: TokenisedTask) -> str | None:
    """Replace the padding token of ``model`` and ``tokenizer`` if a text of ``task`` ends in it.

    Returns a note, or None without a change. Raises :class:`UserError` if texts end in every special token.
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
            f"texts end in the padding token {old!r}, so transformers would classify by the token before it; "
            "the tokenizer has no other special token: add one to the base model and its tokenizer, and "
            "train again"
        )
    tokenizer.pad_token = new = tokenizer.convert_ids_to_tokens(special[0])
    use_padding(model, special[0])
    return (
        f"texts end in the padding token {old!r}: saved with {new!r} as padding token, so that transformers "
        "classifies by their last token"
    )


def _last_tokens(task: TokenisedTask) -> set[int]:
    return {int(number) for split in task.splits.values() for number in split.tokens[split.offsets[1:] - 1]}
