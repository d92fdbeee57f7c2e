"""How deep each matrix is in its stack of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from bitrank_planner.problem import Item


def places_of(items: Sequence[Item]) -> dict[str, tuple[int, int]]:
    """{item: (place of its layer from 0, number of layers)} within the item's stack.

    Layers of ``items`` alone count. Items outside the layers are absent.
    """
    layers: dict[str, set[int]] = {}
    for item in items:
        if item.layer is not None:
            layers.setdefault(item.stack, set()).add(item.layer)
    ordered = {stack: sorted(found) for stack, found in layers.items()}
    return {
        item.name: (ordered[item.stack].index(item.layer), len(ordered[item.stack]))
        for item in items
        if item.layer is not None
    }
