"""Replace modules of an adapted model by fused ones, and choose its attention implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitrank_adapters import fuse
from bitrank_quant import CompiledRows, Decode, decoder
from bitrank_trainer import fuse_rotary, narrow_last_block, register_attention
from torch import nn

ROWS = CompiledRows()


def fuse_model(model: Any, decode: Callable[[nn.Module], Decode | None] = decoder) -> None:
    """Let an adapted ``model`` compute by the fused products and norms, and its last block only what is read of it, in place."""
    fuse_rotary(model, ROWS)
    fuse(model, decode, ROWS)
    narrow_last_block(model)


def attention_for(device: str, fused: bool) -> str:
    """CUDA has kernels of its own; elsewhere the plain formula is the fastest at the lengths of a laptop."""
    return "sdpa" if device == "cuda" else register_attention(ROWS) if fused else "eager"
