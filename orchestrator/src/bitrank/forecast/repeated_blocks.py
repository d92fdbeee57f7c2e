"""Estimate the peak of a deep model's training step from dry runs of a few of its blocks.

All blocks of a decoder have one shape. Live bytes peak when the backward pass of the last block begins: the
saved activations of all earlier blocks, plus the buffers of the last block and the head. The activations that
a block saves depend on its ranks and on which of its matrices are decoded. Each kind of block is therefore
run once between the first and the last block, and its bytes are multiplied by the number of such blocks. The
result equals that of the whole model (a test checks it) and takes a tenth of the time for 80 blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitrank.forecast.dry_run import Unplanned, dry_run
from bitrank.models.config import read_config
from bitrank.models.meta_model import find_new_modules, meta_model
from bitrank.process.compute import Compute
from bitrank.spec.run_spec import RunSpec

_BLOCK = re.compile(r"(.+?)\.(\d+)\.(.+)")
# The first and the last block differ from the others: the first block's input has no gradient, and the last
# block's backward pass follows the head's.
_ENDS = 2


@dataclass(frozen=True)
class Choice:
    """Formats and ranks of a plan by module name; for one block, by the name after the block's number."""

    precision: Mapping[str, str]
    ranks: Mapping[str, int]

    def kind(self) -> object:
        """Return the key on which a block's saved bytes depend.

        The key holds the ranks and the names of the matrices that are stored in the compute dtype.
        """
        return tuple(sorted(self.ranks.items())), tuple(
            sorted(name for name, fmt in self.precision.items() if fmt == "bf16")
        )


def step_bytes(spec: RunSpec, choice: Choice, compute: Compute) -> int:
    """Return the peak of live bytes in one training step of ``spec``, besides the model and its gradients."""
    blocks = _blocks(choice)
    if not _uniform(spec, blocks):
        return _peak(spec, compute, choice, None)
    first, last, between = blocks[0][1], blocks[-1][1], [block for _, block in blocks[1:-1]]
    kinds = {block.kind(): block for block in between}
    if _ENDS + len(kinds) * (_ENDS + 1) >= len(blocks):
        return _peak(spec, compute, choice, None)
    prefix, often = blocks[0][0], Counter(block.kind() for block in between)
    rest = Choice({n: f for n, f in choice.precision.items() if not _BLOCK.match(n)}, {})

    def peak(*chosen: Choice) -> int:
        return _peak(spec, compute, _joined(rest, chosen, prefix), len(chosen))

    ends = peak(first, last)
    return ends + sum(often[kind] * (peak(first, block, last) - ends) for kind, block in kinds.items())


def _blocks(choice: Choice) -> list[tuple[str, Choice]]:
    """Return the blocks in order, each as the name before its number and its part of ``choice``."""
    found: dict[tuple[str, int], Choice] = {}
    for part in ("precision", "ranks"):
        for name, value in getattr(choice, part).items():
            if hit := _BLOCK.match(name):
                getattr(found.setdefault((hit[1], int(hit[2])), Choice({}, {})), part)[hit[3]] = value
    return [(prefix, found[prefix, number]) for prefix, number in sorted(found)]


def _uniform(spec: RunSpec, blocks: Sequence[tuple[str, Choice]]) -> bool:
    """Return whether the model is a single stack of equal blocks, as many as the plan names."""
    config = read_config(spec.model, spec.kind)
    kinds = getattr(config, "layer_types", None) or [""]
    alike = (
        len({prefix for prefix, _ in blocks}) == 1
        and len({frozenset(block.precision) for _, block in blocks}) == 1
    )
    return alike and len(set(kinds)) == 1 and config.num_hidden_layers == len(blocks)


def _joined(rest: Choice, blocks: Sequence[Choice], prefix: str) -> Choice:
    """Return the choice for a model that consists of ``rest`` and these blocks."""
    precision, ranks = dict(rest.precision), dict(rest.ranks)
    for number, block in enumerate(blocks):
        precision |= {f"{prefix}.{number}.{name}": fmt for name, fmt in block.precision.items()}
        ranks |= {f"{prefix}.{number}.{name}": rank for name, rank in block.ranks.items()}
    return Choice(precision, ranks)


def _peak(spec: RunSpec, compute: Compute, choice: Choice, depth: int | None) -> int:
    model = meta_model(spec.model, spec.kind, 2, compute.dtype, dropout=spec.dropout, depth=depth)
    unplanned = Unplanned(model, find_new_modules(model, spec.model, spec.kind))
    stage = dry_run(spec, compute, unplanned, choice.precision, choice.ranks, 10)
    return stage.step((spec.batch_size, spec.max_length)).peak
