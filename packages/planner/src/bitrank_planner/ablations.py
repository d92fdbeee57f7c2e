"""Ablations of the joint problem: the rank or the format of every matrix is fixed, the other is optimized.

Comparing :func:`bits_only` and :func:`rank_only` with the joint problem measures the contribution of each
half at an equal byte budget.
"""

from __future__ import annotations

from dataclasses import replace

from bitrank_planner.errors import PlanError
from bitrank_planner.problem import Item, Problem


def bits_only(problem: Problem, rank: int) -> Problem:
    """Fix the rank of every matrix that can have an adapter to ``rank``; formats stay free.

    Matrices whose options all have rank 0 keep all of them. Raises :class:`PlanError` if a matrix does not
    offer ``rank``.
    """
    return replace(problem, items=tuple(_at_rank(item, rank) for item in problem.items))


def rank_only(problem: Problem, fmt: str) -> Problem:
    """Fix the format of every matrix to ``fmt``, with or without an adapter; ranks stay free.

    Raises :class:`PlanError` if a matrix does not offer ``fmt``.
    """
    return replace(problem, items=tuple(_in_format(item, fmt) for item in problem.items))


def _at_rank(item: Item, rank: int) -> Item:
    if not any(option.rank for option in item.options):
        return item
    return _kept(item, tuple(option for option in item.options if option.rank == rank), f"rank {rank}")


def _in_format(item: Item, fmt: str) -> Item:
    return _kept(item, tuple(option for option in item.options if option.format == fmt), fmt)


def _kept(item: Item, options: tuple, restriction: str) -> Item:
    if not options:
        formats = dict.fromkeys(option.format for option in item.options)
        ranks = sorted({option.rank for option in item.options})
        raise PlanError(
            f"{item.name} is not offered with {restriction}; offered: {', '.join(formats)}; ranks "
            f"{', '.join(map(str, ranks))}"
        )
    return replace(item, options=options)
