"""What each choice costs in nats and in bytes: the measured tables as one planning problem.

    cost_i(f, r) = κ_if · tail_if(r) + η · Σ_{k>r} σ_k(G_i)

*Repair.* ``tail_if(r)`` is the Fisher-weighted energy that the best rank-r repair leaves of matrix i's error in format f (nats,
second order; see :mod:`bitrank_quant.sensitivity`). κ_if pulls it towards the truth, the measured added loss of that one matrix:
what is believed is fisher + w (added − fisher) with w = fisher² / (fisher² + s²), s the noise of the measurement, so that a large
loss is believed as measured and a small one as predicted. Without w the planner picks the matrices whose noise was kindest. It
speaks of a start from the weighted residual (``init=lq-lora``); a start from zero repairs nothing, so its cost is the one of r = 0
whatever the rank.

*Learning.* G_i is the task gradient. A step of spectral norm η within rank r lowers the loss by η Σ_{k≤r} σ_k(G_i) to first order (the
dual of the spectral norm is the nuclear norm), so what rank r cannot reach of it is a cost. η is how far training moves a matrix; it is
one number for all matrices, chosen on validation data (see EXPERIMENTS.md), and 0 leaves the term out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from bitrank_planner import Item, Option, PlanError, Problem
from bitrank_quant import WeightMatrix

from bitrank.measuring import Tables
from bitrank.planning.sizes import Sizes

RANKS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FORMATS = ("int2-g64", "int3-g64", "int4-g64", "nf4-dq", "int8", "bf16")
ETA = 0.0
_LEAST = 0.1  # of the predicted loss is believed even where less was measured: nothing is free
_MAD = 1.4826  # of the median absolute deviation gives the standard deviation of normal noise


@dataclass(frozen=True)
class Choices:
    """What a plan may choose from, and how far training is expected to move a matrix (``eta``, in units of weights).

    ``repairs`` False is a start with B = 0, where rank repairs nothing.
    """

    formats: tuple[str, ...] = FORMATS
    ranks: tuple[int, ...] = RANKS
    eta: float = ETA
    repairs: bool = True


def make_problem(tables: Tables, sizes: Sizes, budget: int, choices: Choices, max_trainable: int | None = None) -> Problem:
    """The problem of giving every matrix of ``tables`` a format and a rank within ``budget`` bytes for model and adapters.

    Matrices outside the transformer blocks (embeddings, heads) get a format and no adapter. Raises
    :class:`~bitrank_planner.PlanError` when a format was not measured or no rank fits a matrix.
    """
    owned = [matrix for matrix in tables.matrices if matrix.tied_to is None]
    noise = measured_noise(tables)
    items = tuple(Item(m.name, _options(m, tables, sizes, choices, noise), m.role, m.layer, m.shape) for m in owned)
    return Problem(items, budget, sizes.fixed, max_trainable)


def adaptable(matrix: WeightMatrix) -> bool:
    """Whether ``matrix`` may get an adapter: a linear matrix inside the transformer blocks."""
    return matrix.layer is not None and matrix.role != "embedding"


def _options(matrix: WeightMatrix, tables: Tables, sizes: Sizes, choices: Choices, noise: float) -> tuple[Option, ...]:
    fitting = [rank for rank in choices.ranks if rank <= min(matrix.shape)] if adaptable(matrix) else [0]
    if not fitting:
        raise PlanError(f"no rank of {choices.ranks} fits {matrix.name} of shape {matrix.shape}: offer one up to {min(matrix.shape)}")
    return tuple(
        Option(fmt, rank, sizes.of_matrix(matrix.name, fmt, rank), cost, rank * sum(matrix.shape))
        for fmt in choices.formats
        for rank, cost in zip(fitting, costs(matrix, tables, fmt, fitting, choices, noise), strict=True)
    )


def costs(matrix: WeightMatrix, tables: Tables, fmt: str, ranks: Sequence[int], choices: Choices, noise: float) -> list[float]:
    """Nats lost by ``matrix`` in ``fmt`` at each of ``ranks``, relative to 16 bits and full rank.

    ``noise`` is that of the measured losses, see :func:`measured_noise`.
    """
    if fmt not in tables.errors[matrix.name]:
        raise PlanError(f"{fmt} was not measured; measured: {', '.join(tables.errors[matrix.name])}")
    errors = tables.errors[matrix.name][fmt]
    spectrum_K = tables.moments[matrix.name].gradient_K.double().numpy()
    missed_R = np.concatenate([spectrum_K[::-1].cumsum()[::-1], [0.0]])
    tail_R = errors.tail_R.double().numpy()
    pull = pulled(errors.added, errors.fisher, noise) / errors.fisher if errors.fisher > 0 else 1.0
    lost = []
    for rank in ranks:
        repaired = tail_R[min(rank, len(tail_R) - 1)] if choices.repairs and len(tail_R) else errors.fisher
        lost.append(float(pull * repaired + choices.eta * missed_R[min(rank, len(missed_R) - 1)]))
    return lost


def pulled(added: float | None, predicted: float, noise: float) -> float:
    """The loss believed of one matrix alone, in nats: between the predicted and the measured one."""
    if added is None or predicted <= 0:
        return predicted
    weight = predicted**2 / (predicted**2 + noise**2) if noise > 0 else 1.0
    return max(predicted + weight * (added - predicted), _LEAST * predicted)


def measured_noise(tables: Tables) -> float:
    """Standard deviation of measured minus predicted loss over the half of all (matrix, format) pairs that should lose least.

    Robust (from the median absolute deviation). What is measured there is rounding of the forward pass and the choice of data.
    """
    pairs = [
        (e.fisher, e.added) for by_format in tables.errors.values() for e in by_format.values() if e.added is not None and e.fisher > 0
    ]
    if not pairs:
        return 0.0
    small = sorted(pairs)[: max(1, len(pairs) // 2)]
    return float(_MAD * np.median([abs(added - fisher) for fisher, added in small]))
