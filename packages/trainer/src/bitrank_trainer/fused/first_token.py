"""Last block of a BERT-like classifier computed at the first position only.

BERT-like models classify by the hidden state of the first token. The last block needs keys and values at
every position, but queries, output projection and feed-forward part at the first position only. For MiniLM's
six blocks this saves 14 % of all products, forward and backward. Results change by rounding only: the skipped
outputs are never used, and their gradient is zero.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bitrank_trainer.fused.attention import NAME
from bitrank_trainer.fused.known import hooked, unchanged

# Model families whose head reads position 0 of the last hidden states and whose blocks are built like BERT's.
_FIRST_READERS = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra")
# implementations that accept masks of shape (B, 1, T, S) and any number of queries
_ATTENTION = (NAME, "sdpa")


def narrow_last_block(model: nn.Module) -> bool:
    """Restrict the last block of ``model`` to the position its classifier reads; return whether it applied.

    The change is in place and supports adapted models. Models whose head reads another position, decoders and
    other attention implementations stay unchanged.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    config: Any = getattr(inner, "config", None)
    if (
        type(inner).__name__ not in {f"{name}ForSequenceClassification" for name in _FIRST_READERS}
        or config.is_decoder
    ):
        return False
    if config._attn_implementation not in _ATTENTION or config.chunk_size_feed_forward:
        return False
    body = getattr(inner, inner.base_model_prefix)
    last = body.encoder.layer[-1]
    attention = last.attention
    # A hook on one of these modules would receive the first position only, or would not run.
    if not unchanged(inner, attention, attention.self, attention.self.dropout) or any(
        map(hooked, (body, body.encoder, *last.modules()))
    ):
        return False
    attention.forward = partial(_attend_once, attention, ALL_ATTENTION_FUNCTIONS[config._attn_implementation])
    return True


def _attend_once(
    layer: Any, attend: Any, hidden_BTD: Tensor, mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Attention of a BERT block for the query at the first position: (B, T, D) → (B, 1, D)."""
    inner = layer.self
    first_B1D = hidden_BTD[:, :1]
    query, key, value = (
        _heads(part(x), inner)
        for part, x in ((inner.query, first_B1D), (inner.key, hidden_BTD), (inner.value, hidden_BTD))
    )
    dropout = inner.dropout.p if inner.training else 0.0
    found, _ = attend(
        inner,
        query,
        key,
        value,
        None if mask is None else mask[..., :1, :],
        dropout=dropout,
        scaling=inner.scaling,
    )
    out_B1D: Tensor = layer.output(found.reshape(len(first_B1D), 1, -1), first_B1D)
    return out_B1D, None


def _heads(states_BTD: Tensor, inner: Any) -> Tensor:
    """(B, T, heads · size) → (B, heads, T, size)."""
    return states_BTD.unflatten(-1, (-1, inner.attention_head_size)).transpose(1, 2)
