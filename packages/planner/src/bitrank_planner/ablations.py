"""One knob at a time: the same problem with the rank or the format of every matrix held fixed.

Reviewers of joint search ask what each half is worth alone. ``bits_only`` and ``rank_only`` are that comparison, at equal bytes.
"""

from __future__ import annotations

from dataclasses import replace

from bitrank_planner.errors import PlanError
from bitrank_planner.problem import Item, Problem


def bits_only(problem: Problem, rank: int) -> Problem:
    """Every matrix that can have an adapter has rank ``rank``; formats stay free. Raises :class:`PlanError` when it is not offered."""
    return replace(problem, items=tuple(_at_rank(item, rank) for item in problem.items))


def rank_only(problem: Problem, fmt: str) -> Problem:
    """Every matrix that can have an adapter is stored as ``fmt``, the others as well; ranks stay free.

    Raises :class:`PlanError` for a matrix that is not offered in that format.
    """
    return replace(problem, items=tuple(_in_format(item, fmt) for item in problem.items))


def _at_rank(item: Item, rank: int) -> Item:
    if not any(option.rank for option in item.options):
        return item
    return _kept(item, tuple(option for option in item.options if option.rank == rank), f"rank {rank}")


def _in_format(item: Item, fmt: str) -> Item:
    return _kept(item, tuple(option for option in item.options if option.format == fmt), fmt)


def _kept(item: Item, options: tuple, what: str) -> Item:
    if not options:
        formats, ranks = dict.fromkeys(o.format for o in item.options), sorted({o.rank for o in item.options})
        raise PlanError(
            f"{item.name} is not offered with {what}; offered: {', '.join(formats)}; ranks {', '.join(map(str, ranks))}"
        )
    return replace(item, options=options)
