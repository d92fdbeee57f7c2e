"""The plan that a practitioner writes by hand: the rule of thumb of llama.cpp's mixed formats at one rank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from bitrank_planner import Item, Plan, PlanError, Problem
from bitrank_quant import parse_format

from bitrank.planning.prior import SENSITIVE
from bitrank.sensitivity.tables import Tables

TABLES = "int8"  # of embeddings and heads, where a pair of formats fits beside it
RANK = 8


def hand_made(problem: Problem, tables: Tables) -> Plan:
    """Return the plan with int8 for embeddings and heads, one format for all other matrices, the next larger
    one for values, attention outputs and down projections, and rank 8.

    Of the pairs of neighbouring formats, the largest that fits the budget is taken. If none fits, embeddings
    and heads get the larger format of the pair in place of int8. A matrix with a single format, such as a
    pinned one, keeps it; where rank 8 is not offered, the next smaller rank is taken, else the smallest.
    Raises :class:`~bitrank_planner.PlanError` if int8 or a second format is not offered, or no pair fits.
    """
    pairs = list(reversed(list(pairwise(_ladder(problem.items)))))
    for embeddings in (TABLES, None):
        for low, high in pairs:
            plan = _plan(problem, low, high, embeddings or high)
            if problem.fits(plan):
                return plan
    problem.check_feasible()
    raise PlanError(
        f"no pair of neighbouring formats fits into {problem.budget:,} bytes at rank {RANK}; offer smaller "
        "formats or ranks, or use the planner 'exact'"
    )


def _ladder(items: Sequence[Item]) -> list[str]:
    """Return the formats that block matrices can choose, fewest bits first; the first offered of each
    width."""
    by_bits: dict[int, str] = {}
    for option in (o for item in _free(items) if item.layer is not None for o in item.options):
        by_bits.setdefault(parse_format(option.format).bits, option.format)
    return [by_bits[bits] for bits in sorted(by_bits)]


def _free(items: Sequence[Item]) -> list[Item]:
    """Return the items with more than one format to choose from."""
    found = []
    for item in items:
        if len({option.format for option in item.options}) > 1:
            found.append(item)
    return found


def _plan(problem: Problem, low: str, high: str, embeddings: str) -> Plan:
    free = {item.name for item in _free(problem.items)}
    precision, ranks = {}, {}
    for item in problem.items:
        fmt = _format(item, low, high, embeddings) if item.name in free else item.options[0].format
        offered = sorted({option.rank for option in item.options if option.format == fmt})
        precision[item.name] = fmt
        ranks[item.name] = max((rank for rank in offered if rank <= RANK), default=min(offered, default=0))
    return problem.find(precision, ranks, "hand-made")


def _format(item: Item, low: str, high: str, embeddings: str) -> str:
    if item.role in ("embedding", "head"):
        return embeddings
    return high if item.layer is not None and SENSITIVE.search(item.name) else low
