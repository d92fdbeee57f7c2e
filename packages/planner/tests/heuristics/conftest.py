"""Model outlines for the tests of the rules: names, roles, layers and shapes of matrices."""

from __future__ import annotations

import pytest
from bitrank_planner.problem import Item, Option

OPTIONS = (Option("any", 0, 1, 0.0),)


def matrix(name: str, role: str = "ffn", layer: int | None = None, shape: tuple[int, int] = (64, 64)) -> Item:
    return Item(name, OPTIONS, role, layer, shape)


@pytest.fixture
def decoder() -> list[Item]:
    """An embedding, four layers with one attention and one feed-forward matrix each, and a head."""
    blocks = [
        m
        for k in range(4)
        for m in (matrix(f"{k}.q", "attention", k), matrix(f"{k}.up", "ffn", k, (128, 64)))
    ]
    return [matrix("embed", "embedding", shape=(500, 64)), *blocks, matrix("head", "head", shape=(500, 64))]


@pytest.fixture
def blocks(decoder: list[Item]) -> list[Item]:
    return decoder[1:-1]


@pytest.fixture
def encoder_decoder() -> list[Item]:
    return [
        matrix("shared", "embedding"),
        matrix("encoder.0.q", "attention", 0),
        matrix("decoder.0.q", "attention", 0),
        matrix("decoder.0.cross", "cross-attention", 0),
        matrix("decoder.0.up", "ffn", 0),
    ]


@pytest.fixture
def stacks() -> list[Item]:
    """An encoder of four layers and a decoder of two."""
    depths = {"encoder": 4, "decoder": 2}
    return [
        matrix(f"{stack}.layers.{layer}.q", "attention", layer)
        for stack, depth in depths.items()
        for layer in range(depth)
    ]
