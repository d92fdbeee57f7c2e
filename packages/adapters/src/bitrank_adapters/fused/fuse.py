"""Fused adapted layers: base product and low-rank product as one autograd function.

PEFT computes ``base(x) + scale · up(down(x))`` as separate graph nodes, each with copies of its tensors. Here
W is frozen, so x is the only input of the base product with a gradient. The thin (rank-sized) products use
the compute dtype, sums are in place, and only x and the thin product are saved; feed-forward parts do not
save x either (:mod:`~bitrank_adapters.fused.feed_forward`). Layers with the same input compute together
(:mod:`~bitrank_adapters.fused.shared_input`). A quantized W is decoded in both passes and saved in neither.
:func:`fuse` changes the computation of adapted layers, not their parameters: PEFT still saves, loads and
merges them. In fp32 the result equals PEFT's up to rounding; in bf16 it differs by the rounding of the thin
product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from bitrank_adapters.fused.feed_forward import fuse_feed_forward
from bitrank_adapters.fused.known import hooked
from bitrank_adapters.fused.linear import (
    ADAPTER,
    Adapted,
    AddLowRank,
    Decode,
    adds_low_rank,
    applies,
    factors,
)
from bitrank_adapters.fused.norms import fuse_norms
from bitrank_adapters.fused.row_kernels import Rows
from bitrank_adapters.fused.shared_input import share_inputs
from bitrank_adapters.rank_hooks import adapted


def plain_decoder(layer: nn.Module) -> Decode | None:
    """Decoder of unquantized models: returns the weight of an ``nn.Linear``."""
    return (lambda: layer.weight) if type(layer) is nn.Linear else None


def fuse(
    model: PeftModel, decoder: Callable[[nn.Module], Decode | None] = plain_decoder, rows: Rows | None = None
) -> list[str]:
    """Fuse adapted layers, layers with shared input, feed-forward parts and norms of ``model``, in place.

    ``decoder`` returns, for a base layer, a function that decodes its (out, in) matrix into the compute
    dtype, in a buffer that the next decode may overwrite; None if the layer does not multiply by a decoded
    matrix. Such a layer keeps its own base product, as does a layer whose decoder has a method ``applies``
    that returns False at the time of the call. Layers with adapter dropout, or with hooks that the fused form
    would skip, keep PEFT's path, and so do adapters that compute another formula; the names of the latter are
    returned. ``rows`` are compiled row kernels, used for the tensors that they serve.
    """
    others = [name for name, layer in adapted(model) if not adds_low_rank(layer)]
    for name, layer in adapted(model):
        has_dropout = not isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity)
        if not (has_dropout or name in others or hooked(*list(layer.modules())[1:])):
            layer.forward = partial(_forward, layer, layer.forward, decoder(layer.base_layer))
    fuse_feed_forward(model, decoder, rows)
    share_inputs(model, decoder)
    fuse_norms(model, rows)
    return others


def _forward(layer: Any, plain: Any, decode: Decode | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if layer.disable_adapters or layer.merged or args or kwargs:
        out: Tensor = plain(x, *args, **kwargs)
        return out
    down_RI, up_OR, scale = factors(layer)
    rows_NI = x.reshape(-1, x.shape[-1])
    if decode is None or not applies(decode):
        rows_NO = AddLowRank.apply(rows_NI, layer.base_layer(rows_NI), down_RI, up_OR, scale)
    else:
        rows_NO = Adapted.apply(rows_NI, decode, layer.base_layer.bias, down_RI, up_OR, scale)
    return rows_NO.view(*x.shape[:-1], rows_NO.shape[-1])
