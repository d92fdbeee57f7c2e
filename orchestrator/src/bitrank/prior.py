"""Sensitivities by prior, for when nothing can be measured: what each format is expected to cost each matrix, in nats.

    cost = 0.24 · (e(format) / e(nf4))² · share(matrix) · weight(role, depth)          after repair by rank r: · tail_energy(shape, r)

e is the relative error on Gaussian weights, and shares of weighted parameters add up to one. This is a stated belief, not knowledge of
the model at hand: the ratios between matrices and formats steer the plan, and the level only says that four bits everywhere cost what
they cost a small model once. Measure instead whenever the model fits the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from bitrank_quant import WeightMatrix

from bitrank.gaussian import relative_error, tail_energy

# ln(33.76 / 26.47): what NF4 in all blocks adds to SmolLM2-135M's loss on wiki_articles before training (the README's table).
LEVEL = 0.243
_UNIT = "nf4"
# Quantization formats of practitioners give the value projection, the attention's output and the FFN's way down more bits, and the first
# and last eighth of the blocks (llama.cpp's k-quant mixes: `attn_v`, `ffn_down`, `use_more_bits`). Here: twice the weight each.
_SENSITIVE = re.compile(
    r"(v_proj|value|\.v|o_proj|out_proj|attention\.output\.dense|SelfAttention\.o|EncDecAttention\.o|attn\.c_proj|c_attn"
    r"|down_proj|output\.dense|mlp\.c_proj|\.wo|fc2|lin2)$"
)
_TWICE = 2.0
_EDGE = 8  # the first and last of so many parts of the blocks


def prior_weight(matrix: WeightMatrix, layers: int) -> float:
    """How much more than a plain matrix each weight of ``matrix`` counts, of a model with ``layers`` blocks. A belief, see above."""
    if matrix.layer is None:
        return _TWICE if matrix.role == "head" else 1.0
    edge = max(1, layers // _EDGE)
    outer = matrix.layer < edge or matrix.layer >= layers - edge
    return (_TWICE if outer else 1.0) * (_TWICE if _SENSITIVE.search(matrix.name) else 1.0)


def prior_errors(matrices: Sequence[WeightMatrix], formats: Iterable[str]) -> dict[str, dict[str, float]]:
    """{matrix: {format: expected added loss in nats}} of every matrix that is not a tied head. Raises the quant package's error for an
    unknown format."""
    free, formats = [m for m in matrices if m.tied_to is None], list(formats)
    layers = 1 + max((m.layer for m in free if m.layer is not None), default=0)
    tied = {m.tied_to for m in matrices if m.tied_to is not None}
    mass = {m.name: math.prod(m.shape) * (_TWICE if m.name in tied else prior_weight(m, layers)) for m in free}
    total = sum(mass.values())
    return {m.name: {text: LEVEL * mass[m.name] / total * _squared(text, m.shape[1]) for text in formats} for m in free}


def prior_costs(matrices: Sequence[WeightMatrix], formats: Iterable[str], ranks: Iterable[int]) -> dict[str, dict[tuple[str, int], float]]:
    """{matrix: {(format, rank): expected nats left after the best repair}}: of embeddings, which get no adapter, rank 0 alone; ranks above
    a matrix's short side are left out."""
    shapes, ranks = {m.name: m for m in matrices}, sorted({0, *ranks})
    costs = {}
    for name, by_format in prior_errors(matrices, formats).items():
        matrix = shapes[name]
        offered = [r for r in ranks if r == 0 or (matrix.role != "embedding" and r <= min(matrix.shape))]
        tails = {r: tail_energy(matrix.shape, r) for r in offered}
        costs[name] = {(text, r): nats * tails[r] for text, nats in by_format.items() for r in offered}
    return costs


def _squared(text: str, width: int) -> float:
    return (relative_error(text, width) / relative_error(_UNIT)) ** 2
