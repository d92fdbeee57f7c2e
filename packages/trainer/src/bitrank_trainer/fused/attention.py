"""Plain softmax attention for short sequences as one autograd function.

At a few dozen to a few hundred tokens on a CPU the textbook formula is faster than tiled kernels. Scores are
scaled and masked in place. Query heads that share a key head form one matrix product, so keys are not
repeated. Only q, k, v and the probabilities are saved for the backward pass; probabilities larger than q are
recomputed instead. Compiled row kernels replace the operations between the products if they serve the
tensors. Results equal the ``eager`` attention of transformers up to rounding.

Models with another attention formula keep their own: :mod:`~bitrank_trainer.fused.own_attention` makes that
decision.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from bitrank_trainer.fused.own_attention import own_attention
from bitrank_trainer.fused.row_kernels import Rows

NAME = "bitrank"
# Most keys for which probabilities are kept for the backward pass, as a multiple of the head size: with more
# keys they are larger than q.
_KEPT = 1


def register_attention(rows: Rows | None = None) -> str:
    """Register the attention with transformers; return its name, to be set as ``attn_implementation``.

    ``rows`` are compiled row kernels, used for the tensors that they serve.
    """
    AttentionInterface.register(NAME, partial(attention, rows=rows))
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME


def attention(  # noqa: PLR0913 - transformers calls it with these arguments
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    rows: Rows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the signature that transformers expects of a registered implementation.

    Shapes: query (B, heads, T, D), key and value (B, key heads, S, D) → (B, T, heads, D). ``attention_mask``
    is added to the scores. A module with another eager formula, or a call with an unknown keyword, runs the
    model's own attention and warns. Dropout uses single autograd operations, because its mask must be saved.
    """
    if (own := own_attention(module, query.shape[1], key.shape[1], kwargs, softmax_attention)) is not None:
        made: tuple[Tensor, Tensor | None] = own(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return made
    return softmax_attention(module, query, key, value, attention_mask, scaling, dropout, rows), None


def softmax_attention(  # noqa: PLR0913 - the arguments of attention() again
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    rows: Rows | None = None,
) -> Tensor:
    """softmax(q kᵀ · scaling + mask) v, shape (B, T, heads, D); ``scaling`` defaults to D^−½."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if dropout and module.training:
        return _with_dropout(query, key, value, attention_mask, scale, dropout)
    compiled = rows if rows is not None and rows.serves(query) and _is_read(attention_mask, query) else None
    out: Tensor = _Attention.apply(query, key, value, attention_mask, scale, compiled)
    return out


def _is_read(mask: Tensor | None, query: Tensor) -> bool:
    """Whether compiled kernels support ``mask``: one mask for all heads, in the dtype of the scores."""
    return mask is None or (mask.shape[1] == 1 and mask.dtype == query.dtype)


def _with_dropout(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    probabilities = torch.softmax(scores if mask is None else scores + mask, -1)
    return (torch.dropout(probabilities, dropout, True) @ value).transpose(1, 2)


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ · scale + mask) v over (B · key heads, G · T, D), G query heads per key head."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        rows: Rows | None,
    ) -> Tensor:
        batch, heads, length, size = query.shape
        shared = key.shape[1]
        query_GTD = query.reshape(batch * shared, -1, size)
        key_SD, value_SD = key.reshape(batch * shared, -1, size), value.reshape(batch * shared, -1, size)
        probabilities = _probabilities(query_GTD, key_SD, mask, scale, batch, heads, rows)
        kept = probabilities if key_SD.shape[1] <= _KEPT * size else None
        ctx.save_for_backward(query_GTD, key_SD, value_SD, mask if kept is None else None, kept)
        ctx.scale, ctx.rows = scale, rows
        return (
            torch.bmm(probabilities, value_SD).view(batch, heads, length, size).transpose(1, 2).contiguous()
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query_GTD, key_SD, value_SD, mask, kept = ctx.saved_tensors
        batch, length, heads, size = grads[0].shape
        probabilities = (
            _probabilities(query_GTD, key_SD, mask, ctx.scale, batch, heads, ctx.rows)
            if kept is None
            else kept
        )
        grad_GTD = grads[0].transpose(1, 2).reshape(query_GTD.shape)
        grad_value = torch.bmm(probabilities.transpose(1, 2), grad_GTD)
        grad_scores = _score_gradient(
            torch.bmm(grad_GTD, value_SD.transpose(1, 2)), probabilities, ctx.scale, ctx.rows
        )
        grad_query = torch.bmm(grad_scores, key_SD).view(batch, heads, length, size)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query_GTD)
        return (
            grad_query,
            grad_key.view(batch, -1, *key_SD.shape[1:]),
            grad_value.view(batch, -1, *value_SD.shape[1:]),
            None,
            None,
            None,
        )


def _probabilities(
    query_GTD: Tensor,
    key_SD: Tensor,
    mask: Tensor | None,
    scale: float,
    batch: int,
    heads: int,
    rows: Rows | None,
) -> Tensor:
    """Attention probabilities (B · key heads, G · T, S), in the dtype of the query."""
    length = query_GTD.shape[0] * query_GTD.shape[1] // (batch * heads)
    scores = torch.bmm(query_GTD, key_SD.transpose(1, 2))
    if rows:
        return rows.softmax_(scores, mask, scale, length, heads)
    # In fp32: torch's 16-bit softmax is five times slower on rows whose length is no multiple of the vector
    # width.
    scores = scores.float().mul_(scale)
    if mask is not None:
        scores.view(batch, heads, length, -1).add_(mask)
    # Not in place: in place it takes twice as long on rows whose length is no multiple of the vector width.
    return torch.softmax(scores, -1).to(query_GTD.dtype)


def _score_gradient(
    grad_probabilities: Tensor, probabilities: Tensor, scale: float, rows: Rows | None
) -> Tensor:
    """Gradient of q kᵀ from the gradient of the probabilities, in their dtype."""
    if rows:
        return rows.softmax_gradient_(grad_probabilities, probabilities, scale)
    grad_scores = torch._softmax_backward_data(
        grad_probabilities.float(), probabilities.float(), -1, torch.float32
    )
    return grad_scores.mul_(scale).to(probabilities.dtype)
