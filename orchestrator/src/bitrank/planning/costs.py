"""What each choice costs in nats and in bytes: the measured tables as one planning problem.

    cost_i(f, r) = κ_if · tail_if(r) + η · Σ_{k>r} σ_k(G_i)

*Repair.* ``tail_if(r)`` is the Fisher-weighted energy that the best rank-r repair leaves of matrix i's error in format f (nats,
second order; see :mod:`bitrank_quant.sensitivity`). κ_if pulls it to what was measured: the divergence of the model's answers with that
one matrix quantized ÷ fisher. Not the loss that it adds on the labels: half of that is chance at 3 bits, all of it at 4, and a planner
picks the matrices whose chance was kindest (EXPERIMENTS.md has the figures). It speaks of a start from the weighted residual
(``init=lq-lora``); a start from zero repairs nothing, so its cost is the one of r = 0 whatever the rank.

*Learning.* G_i is the task gradient. A step of spectral norm η within rank r lowers the loss by η Σ_{k≤r} σ_k(G_i) to first order (the
dual of the spectral norm is the nuclear norm), so what rank r cannot reach of it is a cost. η is how far training moves a matrix; it is
one number for all matrices, chosen on validation data (see EXPERIMENTS.md), and 0 leaves the term out.

These costs are of matrices alone. How they add up is measured at a plan afterwards (:mod:`~bitrank.planning.interactions`), with them and
with those of :func:`without_divergences` tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from bitrank_planner import Item, Option, PlanError, Problem
from bitrank_quant import WeightMatrix
from bitrank_quant.sensitivity import FormatErrors

from bitrank.planning.budget import Sizes
from bitrank.sensitivity import measure
from bitrank.sensitivity.tables import Tables

RANKS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FORMATS: tuple[str, ...] = measure.FORMATS
ETA = 0.0


@dataclass(frozen=True)
class Choices:
    """What a plan may choose from, and how far training is expected to move a matrix (``eta``, in units of weights).

    ``repairs`` False is a start with B = 0, where rank repairs nothing.
    """

    formats: tuple[str, ...] = FORMATS
    ranks: tuple[int, ...] = RANKS
    eta: float = ETA
    repairs: bool = True


def make_problem(
    tables: Tables, sizes: Sizes, budget: int, choices: Choices, max_trainable: int | None = None
) -> Problem:
    """The problem of giving every matrix of ``tables`` a format and a rank within ``budget`` bytes for model and adapters.

    Matrices outside the transformer blocks (embeddings, heads) get a format and no adapter. Raises
    :class:`~bitrank_planner.PlanError` when a format was not measured or no rank fits a matrix.
    """
    owned = [matrix for matrix in tables.matrices if matrix.tied_to is None]
    items = tuple(Item(m.name, _options(m, tables, sizes, choices), m.role, m.layer, m.shape) for m in owned)
    return Problem(items, budget, sizes.fixed, max_trainable)


def adaptable(matrix: WeightMatrix) -> bool:
    """Whether ``matrix`` may get an adapter: a linear matrix inside the transformer blocks."""
    return matrix.adaptable


def _options(matrix: WeightMatrix, tables: Tables, sizes: Sizes, choices: Choices) -> tuple[Option, ...]:
    fitting = [rank for rank in choices.ranks if rank <= min(matrix.shape)] if adaptable(matrix) else [0]
    if not fitting:
        raise PlanError(
            f"no rank of {choices.ranks} fits {matrix.name} of shape {matrix.shape}: offer one up to {min(matrix.shape)}"
        )
    return tuple(
        Option(fmt, rank, sizes.of_matrix(matrix.name, fmt, rank), cost, rank * sum(matrix.shape))
        for fmt in choices.formats
        for rank, cost in zip(fitting, costs(matrix, tables, fmt, fitting, choices), strict=True)
    )


def costs(
    matrix: WeightMatrix, tables: Tables, fmt: str, ranks: Sequence[int], choices: Choices
) -> list[float]:
    """Nats lost by ``matrix`` in ``fmt`` at each of ``ranks``, relative to 16 bits and full rank."""
    if fmt not in tables.errors[matrix.name]:
        raise PlanError(f"{fmt} was not measured; measured: {', '.join(tables.errors[matrix.name])}")
    errors = tables.errors[matrix.name][fmt]
    spectrum_K = tables.moments[matrix.name].gradient_K.double().numpy()
    missed_R = np.concatenate([spectrum_K[::-1].cumsum()[::-1], [0.0]])
    tail_R = errors.tail_R.double().numpy()
    pull = estimated_loss(errors) / errors.fisher if errors.fisher > 0 else 1.0
    lost = []
    for rank in ranks:
        repaired = tail_R[min(rank, len(tail_R) - 1)] if choices.repairs and len(tail_R) else errors.fisher
        lost.append(float(pull * repaired + choices.eta * missed_R[min(rank, len(missed_R) - 1)]))
    return lost


def without_divergences(tables: Tables) -> Tables:
    """``tables`` as if no matrix had been quantized alone: the Fisher form is believed wherever there is one."""
    errors = {
        name: {
            fmt: replace(error, divergence=None) if error.fisher > 0 else error
            for fmt, error in formats.items()
        }
        for name, formats in tables.errors.items()
    }
    return replace(tables, errors=errors)


def estimated_loss(errors: FormatErrors) -> float:
    """The loss believed of one matrix alone, in nats: its measured divergence, or where none was measured the Fisher form."""
    return errors.fisher if errors.divergence is None else errors.divergence
