"""The depth of each stack of blocks: an encoder and its decoder may differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class InStack(Protocol):
    """A weight matrix, or an item of a planner's problem."""

    @property
    def layer(self) -> int | None:
        """The block's number in its stack; None outside the blocks."""

    @property
    def stack(self) -> str:
        """The name of the list of blocks."""


def last_blocks(matrices: Iterable[InStack]) -> dict[str, int]:
    """{stack: number of its last block}."""
    last: dict[str, int] = {}
    for matrix in matrices:
        if matrix.layer is not None:
            last[matrix.stack] = max(matrix.layer, last.get(matrix.stack, 0))
    return last
