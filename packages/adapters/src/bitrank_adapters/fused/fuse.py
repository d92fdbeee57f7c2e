"""An adapted layer as one autograd function: base and low-rank product together, nothing saved but what backward needs.

PEFT computes ``base(x) + scale · up(down(x))`` as separate nodes of the graph, each with its own copies. Here W is frozen, so its only
gradient is the one for x; the thin products run in the compute dtype; sums are made in place; x and the thin product are all that is
kept, and of feed-forward parts not even x (:mod:`~bitrank_adapters.fused.feed_forward`). Layers that share their input compute together
(:mod:`~bitrank_adapters.fused.shared_input`). A quantized W is decoded in both passes and kept in neither. :func:`fuse` changes how adapted
layers compute, not what they hold: saving, loading and merging are PEFT's. In fp32 it equals PEFT's path to rounding; in bf16 it differs
by bf16's rounding of the thin product.
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
from bitrank_adapters.fused.linear import ADAPTER, Adapted, AddLowRank, Decode, applies, factors
from bitrank_adapters.fused.norms import fuse_norms
from bitrank_adapters.fused.row_kernels import Rows
from bitrank_adapters.fused.shared_input import share_inputs
from bitrank_adapters.rank_hooks import adapted


def plain_decoder(layer: nn.Module) -> Decode | None:
    """The decoder of unquantized models: the weight of an ``nn.Linear`` as it is."""
    return (lambda: layer.weight) if type(layer) is nn.Linear else None


def fuse(
    model: PeftModel, decoder: Callable[[nn.Module], Decode | None] = plain_decoder, rows: Rows | None = None
) -> None:
    """Let every adapted layer, layers that share their input, every feed-forward part and every norm of ``model`` use its fused form.

    ``decoder`` tells how the (out, in) matrix of a base layer is decoded into the compute dtype, where the next one may overwrite it; None
    when the layer's product is not that of a decoded matrix. Such layers keep their own base product, as do those whose decoder has a
    method ``applies`` that says no at the time; and layers with adapter dropout keep PEFT's path, as do those
    with hooks on what a fused form would not call. ``rows`` are compiled passes over rows, for the tensors
    that they serve.
    """
    for _, layer in adapted(model):
        if isinstance(layer.lora_dropout[ADAPTER], torch.nn.Identity) and not hooked(
            *list(layer.modules())[1:]
        ):
            layer.forward = partial(_forward, layer, layer.forward, decoder(layer.base_layer))
    fuse_feed_forward(model, decoder, rows)
    share_inputs(model, decoder)
    fuse_norms(model, rows)


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
