"""The blocks that are sharded: parts of a block are not sharded again."""

from __future__ import annotations

from bitrank_trainer.distributed.fully_sharded import _outermost_blocks
from torch import nn


def test_layers_of_a_t5_block_are_parts_of_it() -> None:
    block = nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    model = nn.ModuleDict({name: nn.ModuleDict({"block": nn.ModuleList([block])}) for name in ("encoder",)})
    model["decoder"] = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2) for _ in range(11)])})
    found = [name for name, _ in _outermost_blocks(model)]
    assert found[0] == "encoder.block.0" and found[1] == "decoder.layers.0" and len(found) == 12
