"""What a training step of a deep model keeps, from a rehearsal of a few of its blocks.

Blocks of a decoder have one shape. A step holds most while the last block's backward pass begins: what each block before it keeps, and
what the last one and the head take; and what a block keeps follows from its ranks and from which of its matrices are decoded. So each
kind of block is rehearsed once between the first and the last one, and counted as often as it comes. The figure is that of the whole
model (a test holds it), in a tenth of the time for 80 blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bitrank.forecast.dry_run import dry_run
from bitrank.models.config import read_config
from bitrank.models.meta_model import find_new_modules, meta_model
from bitrank.spec.run_spec import RunSpec

_BLOCK = re.compile(r"(.+?)\.(\d+)\.(.+)")
_ENDS = 2  # the first block's input has no gradient, and the last one's gives way to the head's


@dataclass(frozen=True)
class Choice:
    """Formats and ranks of a plan, by module name; of one block, by what stands behind the block's number."""

    precision: Mapping[str, str]
    ranks: Mapping[str, int]

    def kind(self) -> object:
        """What decides how much a block keeps: its ranks, and which of its matrices are stored as they are computed with."""
        return tuple(sorted(self.ranks.items())), tuple(
            sorted(name for name, fmt in self.precision.items() if fmt == "bf16")
        )


def step_bytes(spec: RunSpec, choice: Choice, dtype: torch.dtype) -> int:
    """The most bytes alive at once, beside the model and its gradients, in a step of one batch as ``spec`` says."""
    blocks = _blocks(choice)
    if not _uniform(spec, blocks):
        return _peak(spec, choice, None, dtype)
    first, last, between = blocks[0][1], blocks[-1][1], [block for _, block in blocks[1:-1]]
    kinds = {block.kind(): block for block in between}
    if _ENDS + len(kinds) * (_ENDS + 1) >= len(blocks):
        return _peak(spec, choice, None, dtype)
    prefix, often = blocks[0][0], Counter(block.kind() for block in between)
    rest = Choice({n: f for n, f in choice.precision.items() if not _BLOCK.match(n)}, {})

    def peak(*chosen: Choice) -> int:
        return _peak(spec, _joined(rest, chosen, prefix), len(chosen), dtype)

    ends = peak(first, last)
    return ends + sum(often[kind] * (peak(first, block, last) - ends) for kind, block in kinds.items())


def _blocks(choice: Choice) -> list[tuple[str, Choice]]:
    """Every block in order: what stands before its number, and the part of ``choice`` that is about it."""
    found: dict[tuple[str, int], Choice] = {}
    for part in ("precision", "ranks"):
        for name, value in getattr(choice, part).items():
            if hit := _BLOCK.match(name):
                getattr(found.setdefault((hit[1], int(hit[2])), Choice({}, {})), part)[hit[3]] = value
    return [(prefix, found[prefix, number]) for prefix, number in sorted(found)]


def _uniform(spec: RunSpec, blocks: Sequence[tuple[str, Choice]]) -> bool:
    """Whether the model is one row of blocks that are alike, as many as the plan speaks of."""
    config = read_config(spec.model, spec.kind)
    kinds = getattr(config, "layer_types", None) or [""]
    alike = (
        len({prefix for prefix, _ in blocks}) == 1
        and len({frozenset(block.precision) for _, block in blocks}) == 1
    )
    return alike and len(set(kinds)) == 1 and config.num_hidden_layers == len(blocks)


def _joined(rest: Choice, blocks: Sequence[Choice], prefix: str) -> Choice:
    """One choice for a model of these blocks alone."""
    precision, ranks = dict(rest.precision), dict(rest.ranks)
    for number, block in enumerate(blocks):
        precision |= {f"{prefix}.{number}.{name}": fmt for name, fmt in block.precision.items()}
        ranks |= {f"{prefix}.{number}.{name}": rank for name, rank in block.ranks.items()}
    return Choice(precision, ranks)


def _peak(spec: RunSpec, choice: Choice, depth: int | None, dtype: torch.dtype) -> int:
    model = meta_model(spec.model, spec.kind, 2, dtype, dropout=spec.dropout, depth=depth)
    trained_modules = find_new_modules(model, spec.model, spec.kind)
    stage = dry_run(spec, model, trained_modules, choice.precision, choice.ranks, 10, "cpu", dtype)
    return stage.step((spec.batch_size, spec.max_length)).peak
