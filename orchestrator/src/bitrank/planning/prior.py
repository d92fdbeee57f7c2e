"""Prior sensitivities for models that cannot be measured: the expected cost in nats per matrix and format.

    cost = 0.24 · (e(format) / e(nf4))² · share(matrix) · weight(role, depth)     times tail_energy(shape, r)
                                                                                  after repair by rank r

e is the relative error on Gaussian weights; the shares of the weighted parameters sum to one. This is an
assumption, not a measurement of the given model: the plan depends on the ratios between matrices and formats,
and the level only equals the cost of four bits everywhere in one small model. Measure instead if the model
fits the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache

import numpy as np
import torch
from bitrank_quant import Float, WeightMatrix, parse_format

from bitrank.spec.stacks import last_blocks

_WEIGHTS = 2**20  # size of the matrix on which formats are compared
_GRID = 4097

# ln(33.76 / 26.47): the loss that NF4 in all blocks adds to SmolLM2-135M on wiki_articles before training, of
# an early study. The study in docs/results.md gives ln(33.83 / 26.50) = 0.244.
LEVEL = 0.243
_UNIT = "nf4"
# Practitioners' mixed formats give more bits to the value projection, the attention output, the FFN's down
# projection, and to the first and last eighth of the blocks (llama.cpp's k-quant mixes: `attn_v`, `ffn_down`,
# `use_more_bits`). Here each of these gets twice the weight.
SENSITIVE = re.compile(
    r"(v_proj|value|\.v|o_proj|out_proj|attention\.output\.dense|SelfAttention\.o|EncDecAttention\.o"
    r"|attn\.c_proj|c_attn"
    r"|down_proj|output\.dense|mlp\.c_proj|\.wo|fc2|lin2)$"
)
_TWICE = 2.0
_EDGE = 8  # the first and the last 1/8 of the blocks are edges


def prior_weight(matrix: WeightMatrix, layers: int) -> float:
    """Return the weight of a parameter of ``matrix``, in a stack of ``layers``, relative to a plain one.

    The weight is an assumption; see the module's docstring.
    """
    if matrix.layer is None:
        return _TWICE if matrix.role == "head" else 1.0
    edge = max(1, layers // _EDGE)
    outer = matrix.layer < edge or matrix.layer >= layers - edge
    return (_TWICE if outer else 1.0) * (_TWICE if SENSITIVE.search(matrix.name) else 1.0)


def prior_errors(
    matrices: Sequence[WeightMatrix], formats: Iterable[str], heads: Collection[str] = ()
) -> dict[str, dict[str, float]]:
    """Return {matrix: {format: expected added loss in nats}}.

    ``heads`` are the embeddings whose weight a head shares: they count as heads. Raises the quant package's
    error for an unknown format.
    """
    formats = list(formats)
    last = last_blocks(matrices)
    mass = {
        m.name: math.prod(m.shape)
        * (_TWICE if m.name in heads else prior_weight(m, 1 + last.get(m.stack, 0)))
        for m in matrices
    }
    total = sum(mass.values())
    return {
        m.name: {text: LEVEL * mass[m.name] / total * _squared(text, m.shape[1]) for text in formats}
        for m in matrices
    }


def prior_costs(
    matrices: Sequence[WeightMatrix],
    formats: Iterable[str],
    ranks: Iterable[int],
    heads: Collection[str] = (),
) -> dict[str, dict[tuple[str, int], float]]:
    """Return {matrix: {(format, rank): expected nats after the best repair}}; see :func:`prior_errors`.

    Embeddings get no adapter and have rank 0 only. Ranks above a matrix's short side are omitted.
    """
    shapes, ranks = {m.name: m for m in matrices}, sorted({0, *ranks})
    costs = {}
    for name, by_format in prior_errors(matrices, formats, heads).items():
        matrix = shapes[name]
        offered = [r for r in ranks if r == 0 or (matrix.role != "embedding" and r <= min(matrix.shape))]
        tails = {r: tail_energy(matrix.shape, r) for r in offered}
        costs[name] = {(text, r): nats * tails[r] for text, nats in by_format.items() for r in offered}
    return costs


def _squared(text: str, width: int) -> float:
    return (relative_error(text, width) / relative_error(_UNIT)) ** 2


@cache
def relative_error(text: str, width: int = 1024) -> float:
    """Return ‖W − q(W)‖ / ‖W‖ of the format ``text`` on a standard normal matrix with rows of ``width``.

    0 for floating-point formats, because the model already has such a format. At 1,024: int8 0.0077, NF4
    0.092, int4 in groups of 64 0.090, int3 0.19, int2 0.45. Only int8 depends on the width, because its
    single scale per row depends on the row's largest weight. The value is computed from a fixed seed and
    cached.
    """
    fmt = parse_format(text)
    if isinstance(fmt, Float):
        return 0.0
    shape = (max(1, _WEIGHTS // width), width)
    weight_OI = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    stored_OI = fmt.decode(fmt.encode(weight_OI), shape, torch.float32)
    return float((weight_OI - stored_OI).norm() / weight_OI.norm())


def tail_energy(shape: tuple[int, int], rank: int) -> float:
    """Return the share of ‖G‖² outside the best approximation of ``rank``, for a large random matrix G.

    G has independent entries. With β = short / long side, the squared singular values follow the
    Marchenko–Pastur law (1967) on (1 ± √β)². Let λ = 1 + β + 2√β cos θ: the singular values above the one at
    θ contain (θ − sin θ cos θ) / π of the energy, and their share of the count is ∫ 2 sin² t / (π λ(t)) dt
    from 0 to θ. Unweighted quantization errors resemble such a matrix. Errors weighted by sensitivity do not,
    so this is the minimum that rank repairs. Raises ``ValueError`` for a rank outside 0 … the short side.
    """
    short, long = sorted(shape)
    if not 0 <= rank <= short:
        raise ValueError(f"rank {rank} does not fit a matrix of shape {shape}: expected 0 to {short}")
    theta_G, count_G = _share_above(short / long)
    theta = float(np.interp(rank / short, count_G, theta_G))
    return 1.0 - (theta - float(np.sin(theta) * np.cos(theta))) / np.pi


@cache
def _share_above(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of θ from 0 to π, and the share of singular values above each."""
    theta_G = np.linspace(0.0, np.pi, _GRID)
    edge_G = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(theta_G)
    # A square matrix has λ = 0 at θ = π, where the limit of sin² / λ is 2.
    density_G = (
        2 / np.pi * np.divide(np.sin(theta_G) ** 2, edge_G, out=np.full(_GRID, 2.0), where=edge_G > 1e-12)
    )
    parts_G = (density_G[1:] + density_G[:-1]) / 2 * np.diff(theta_G)
    count_G = np.concatenate([[0.0], np.cumsum(parts_G)])
    return theta_G, count_G / count_G[-1]
