"""Every token id has a row in the model's embedding: a tokenizer with more tokens than rows is refused.

A look-up beyond the table is an IndexError on a CPU and an assertion inside a kernel on a GPU, and neither
names the tokenizer.
"""

from __future__ import annotations

from typing import Any

from bitrank_data import TokenisedTask

from bitrank.errors import UserError


def check_vocabulary(name: str, task: TokenisedTask, tokenizer: Any, config: Any) -> None:
    """Raises :class:`UserError` when ``task`` holds an id that model ``name`` with this configuration has no
    row for.

    Tokens beyond the table that no text contains are no obstacle: tokenizers often have some.
    """
    rows: int | None = getattr(config.get_text_config(), "vocab_size", None)
    largest = task.largest_token()
    if rows is None or largest < rows:
        return
    token = tokenizer.convert_ids_to_tokens(largest)
    raise UserError(
        f"the tokenizer of {name} gives id {largest} ({token!r}), but its model has rows for {rows} tokens "
        "(vocab_size in config.json); give model and tokenizer that belong together, or resize the embedding "
        "with model.resize_token_embeddings and save it"
    )
