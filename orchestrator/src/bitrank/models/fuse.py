"""Replace modules of an adapted model by fused ones, and choose its attention implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitrank_adapters import fuse
from bitrank_quant import CompiledRows, Decode, decoder
from bitrank_trainer import fuse_rotary, narrow_last_block, register_attention
from torch import nn

ROWS = CompiledRows()


def fuse_model(model: Any, decode: Callable[[nn.Module], Decode | None] = decoder) -> list[str]:
    """Replace modules of an adapted ``model`` by fused products and norms, in place.

    The last block is narrowed to the positions of which the output is used. Returns the names of matrices
    whose adapters compute another formula than the fused forms, and keep PEFT's.
    """
    fuse_rotary(model, ROWS)
    others = fuse(model, decode, ROWS)
    narrow_last_block(model)
    return others


def attention_for(device: str, fused: bool) -> str:
    """Return the attention implementation for ``device``.

    CUDA has its own kernels; elsewhere the plain formula is the fastest at sequence lengths that suit a
    laptop.
    """
    return "sdpa" if device == "cuda" else register_attention(ROWS) if fused else "eager"
