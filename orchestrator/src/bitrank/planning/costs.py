"""Build the planning problem: the cost in nats and the bytes of each choice, from the measured tables.

    cost_i(f, r) = output_if · tail_if(r) / tail_if(0)

*Quantization.* ``output_if`` is the loss in nats that matrix i in format f adds alone, predicted from output
errors at single positions (:mod:`bitrank_quant.sensitivity.samples`).

*Repair.* ``tail_if(r) / tail_if(0)`` is the share of the error's energy that remains after the best rank-r
repair, inputs weighted by their second moments and outputs by their Fisher information. The term assumes that
adapters start from the weighted residual (``init=lq-lora``). Adapters that start from zero repair nothing, so
every rank then has the cost of r = 0.

*Learning.* These costs have no value of learning: :mod:`~bitrank.planning.learning` adds it on request.

These costs consider each matrix alone. :mod:`~bitrank.planning.interactions` measures afterwards, at a plan,
how they combine; it starts from these costs and from those of the tables of :func:`by_fisher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bitrank_planner import Item, Option, PlanError, Problem
from bitrank_quant import WeightMatrix

from bitrank.planning.budget import Sizes
from bitrank.sensitivity import measure
from bitrank.sensitivity.tables import Tables

# Ranks that a plan chooses from unless others are requested. The costs know the quantization error that rank
# repairs, and not the learning that it permits, so they would choose the smallest offered rank for most
# matrices. 4 is the smallest whose scale (policy ``alpha``) is at most 4: adapters of rank 2 with scale 8
# trained badly at high learning rates (decision 28). Rank 0, no adapter, would be chosen almost everywhere.
RANKS = (4, 8, 12, 16, 24, 32, 48, 64)
FORMATS: tuple[str, ...] = measure.FORMATS


@dataclass(frozen=True)
class Choices:
    """The formats and ranks that a plan may choose.

    ``repairs`` is False if adapters start with B = 0, so that rank repairs no quantization error. ``ranks``
    None offers :data:`RANKS`.
    """

    formats: tuple[str, ...] = FORMATS
    ranks: tuple[int, ...] | None = None
    repairs: bool = True

    @property
    def offered_ranks(self) -> tuple[int, ...]:
        """The ranks that every block matrix may have, if they fit its shape."""
        return RANKS if self.ranks is None else self.ranks

    def ranks_of(self, matrix: WeightMatrix) -> list[int]:
        """Return the offered ranks that fit ``matrix``; 0 alone for a matrix outside the blocks.

        A matrix below the smallest default rank gets no adapter. Raises
        :class:`~bitrank_planner.PlanError` if ``ranks`` were given and none fits.
        """
        if not matrix.adaptable:
            return [0]
        fitting = [rank for rank in self.offered_ranks if rank <= min(matrix.shape)]
        if fitting or self.ranks is None:
            return fitting or [0]
        raise PlanError(
            f"no rank of {self.ranks} fits {matrix.name} of shape {matrix.shape}: offer one up to "
            f"{min(matrix.shape)}"
        )


def make_problem(
    tables: Tables, sizes: Sizes, budget: int, choices: Choices, max_trainable: int | None = None
) -> Problem:
    """Return the problem of choosing a format and a rank for every matrix of ``tables`` within ``budget``.

    ``budget`` is in bytes and covers the model and its adapters. Matrices outside the transformer blocks
    (embeddings, heads) get a format and no adapter. Raises :class:`~bitrank_planner.PlanError` if a format
    was not measured or no rank fits a matrix.
    """
    owned = [matrix for matrix in tables.matrices if matrix.tied_to is None]
    items = tuple(Item(m.name, _options(m, tables, sizes, choices), m.role, m.layer, m.shape) for m in owned)
    return Problem(items, budget, sizes.fixed, max_trainable)


def _options(matrix: WeightMatrix, tables: Tables, sizes: Sizes, choices: Choices) -> tuple[Option, ...]:
    fitting = choices.ranks_of(matrix)
    return tuple(
        Option(fmt, rank, sizes.of_matrix(matrix.name, fmt, rank), cost, rank * sum(matrix.shape))
        for fmt in choices.formats
        for rank, cost in zip(fitting, costs(matrix, tables, fmt, fitting, choices), strict=True)
    )


def costs(
    matrix: WeightMatrix, tables: Tables, fmt: str, ranks: Sequence[int], choices: Choices
) -> list[float]:
    """Return the loss in nats of ``matrix`` in ``fmt`` at each of ``ranks``.

    The reference is the matrix in 16 bits with full rank.
    """
    if fmt not in tables.errors[matrix.name]:
        raise PlanError(f"{fmt} was not measured; measured: {', '.join(tables.errors[matrix.name])}")
    errors = tables.errors[matrix.name][fmt]
    tail_R = errors.tail_R.double().numpy()
    repaired = choices.repairs and len(tail_R) > 0 and tail_R[0] > 0
    lost = []
    for rank in ranks:
        share = tail_R[min(rank, len(tail_R) - 1)] / tail_R[0] if repaired else 1.0
        lost.append(float(errors.output * share))
    return lost


def by_fisher(tables: Tables) -> Tables:
    """Return ``tables`` with the Fisher estimate in place of the output-error score."""
    errors = {
        name: {fmt: replace(error, output=error.fisher) for fmt, error in formats.items()}
        for name, formats in tables.errors.items()
    }
    return replace(tables, errors=errors)
