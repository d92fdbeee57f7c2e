"""Choose the padding id, and set it in the model's configuration.

Padding is masked, so no prediction may depend on it. But models use its id: decoders that classify take the
last token with another id, RoBERTa and related models count positions from it, and generation fills finished
rows with it. So the batches and the model's configuration must have the same id.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from bitrank_data import pad_id
from transformers import MODEL_MAPPING

# Source text of models that count positions from the padding id: a function of this name, or a table of sines
# with a row for padding.
_COUNTING = ("create_position_ids_from_input_ids", "def make_weights")


def padding_of(tokenizer: Any, config: Any) -> int:
    """Return the padding id for a model with this configuration.

    The id is the tokenizer's (see :func:`~bitrank_data.pad_id`), unless the model counts positions from
    another id: with any other id in its configuration, a saved model would compute other positions after
    loading.
    """
    chosen, own = pad_id(tokenizer, _vocabulary(config)), config.get_text_config().pad_token_id
    if own is not None and own != chosen and own >= 0 and _counts_from_padding(config):
        return int(own)
    return chosen


def set_padding(model: Any, tokenizer: Any) -> None:
    """Write the padding id into the configuration of ``model`` and of its generation."""
    use_padding(model, padding_of(tokenizer, model.config))


def use_padding(model: Any, chosen: int) -> None:
    """Write the padding id ``chosen`` into the configuration of ``model`` and of its generation."""
    for config in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = chosen


def padding_message(tokenizer: Any, config: Any) -> str | None:
    """Return a message about the padding for the user; None if the padding id is the tokenizer's own."""
    chosen, own = padding_of(tokenizer, config), tokenizer.pad_token_id
    if own == chosen:
        return None
    why = "the tokenizer has no padding token"
    if own is not None:
        why = f"the model cannot take the tokenizer's padding id {own}"
    token = tokenizer.convert_ids_to_tokens(chosen)
    filled = f"short sequences are filled with id {chosen} ({token!r})"
    return f"{why}: {filled}, masked, and no prediction depends on it"


def _vocabulary(config: Any) -> int | None:
    """Return the rows of the embedding of a model with this configuration; None if it does not state them."""
    size: int | None = getattr(config.get_text_config(), "vocab_size", None)
    return size


def _counts_from_padding(config: Any) -> bool:
    model = MODEL_MAPPING.get(type(config), None)
    if model is None:
        return False
    kind = model[0] if isinstance(model, tuple) else model
    source = inspect.getsource(sys.modules[kind.__module__])
    return any(text in source for text in _COUNTING)
