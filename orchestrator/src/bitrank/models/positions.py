"""Check a sequence length against the positions that a model has and was trained on.

A length without positions is refused; a length beyond the training length gives a warning. A table of
positions (BERT, GPT-2, OPT) or of angles (GPT-J) has a last row. Models that compute rotary angles for any
length (Llama), use relative positions (T5) or ALiBi (BLOOM) have no such limit; beyond the length in their
config they compute results, but worse ones.
"""

from __future__ import annotations

import torch
from torch import nn

from bitrank.errors import UserError
from bitrank.models.config import read_config
from bitrank.models.locate import locate
from bitrank.models.meta_model import meta_model
from bitrank.spec.run_spec import RunSpec

# Tables of positions: position_embeddings (BERT), embed_positions (OPT), wpe (GPT-2), positions_embed (GPT).
_NAMES = ("position_embed", "embed_position", "positions_embed", "pos_embed", "wpe")


def check_length(spec: RunSpec) -> str | None:
    """Return a warning if ``spec.max_length`` exceeds the length in the model's config, otherwise None.

    Raises :class:`UserError` if the model has no position for so many tokens.
    """
    place = locate(spec.model_source)
    config = read_config(place, spec.kind).get_text_config()
    declared = getattr(config, "max_position_embeddings", None)
    if declared is None or declared < 1:
        return None
    # RoBERTa's table begins with rows up to the padding token's that no other token uses. The table is only
    # inspected in case of doubt, because building the model on ``meta`` takes time. A padding id beyond the
    # table has no row in it.
    unused = 1 + (getattr(config, "pad_token_id", None) or 0)
    if spec.max_length + (unused if unused < declared else 0) <= declared:
        return None
    rows = table_limit(meta_model(place, spec.kind, 2, torch.float32))
    limit = None if rows is None else min(rows, declared)
    if limit is not None and spec.max_length > limit:
        beyond = f"max_length {spec.max_length} is beyond the {limit} positions of {spec.model}"
        raise UserError(f"{beyond}; give --set max_length={limit} or less")
    if limit is None and spec.max_length > declared:
        return (
            f"max_length {spec.max_length} is beyond the {declared} positions that {spec.model} states; it "
            "has no table of positions, so longer texts are computed, but it was not trained on them"
        )
    return None


def table_limit(model: nn.Module) -> int | None:
    """Return the most tokens that the position tables of ``model`` have rows for; None without a table."""
    embeddings = [item for item in model.named_modules() if isinstance(item[1], nn.Embedding)]
    tables = [_usable_rows(name, module) for name, module in embeddings]  # type: ignore[arg-type]
    # GPT-J and CodeGen store the angles of each position in a buffer.
    angles = [len(buffer) for name, buffer in model.named_buffers() if name.endswith("embed_positions")]
    return min((rows for rows in (*tables, *angles) if rows is not None), default=None)


def _usable_rows(name: str, module: nn.Embedding) -> int | None:
    """Return the rows that can be a token's position; None for a table of tokens, distances or the like."""
    last = name.rpartition(".")[2]
    if not last.startswith(_NAMES):
        return None
    rows = module.num_embeddings - int(getattr(module, "offset", 0))  # OPT and BART begin at row 2
    # RoBERTa and related models begin after the row of the padding token.
    return rows if module.padding_idx is None else rows - module.padding_idx - 1
