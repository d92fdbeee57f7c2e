"""The plan that a practitioner writes by hand: the rule of thumb of llama.cpp's mixed formats at one rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from bitrank_planner import Item, Plan, PlanError, Problem
from bitrank_quant import parse_format

from bitrank.planning.prior import SENSITIVE
from bitrank.sensitivity.tables import Tables
from bitrank.spec.stacks import last_blocks

TABLE_BITS = 8  # bits of embeddings and heads, if they leave the blocks at least FINE bits
FINE = 4
RANK = 8


def hand_made(problem: Problem, tables: Tables) -> Plan:
    """Return the plan with 8 bits for embeddings and heads, the largest format that fits for all blocks, and
    rank 8; what is left of the budget raises blocks to the next larger format.

    Values, attention outputs and down projections are raised first, then the others, both from the first and
    last block inwards. Embeddings and heads get that larger format in place of 8 bits if blocks would have
    less than 4 bits otherwise, and where no format of 8 bits is offered. A matrix with a single format, such
    as a pinned one, keeps it; where rank 8 is not offered, the next smaller rank is taken, else the smallest.
    Raises :class:`~bitrank_planner.PlanError` if no second format is offered, or no pair fits.
    """
    pairs = list(reversed(list(pairwise(_ladder(problem.items)))))
    fine = [pair for pair in pairs if parse_format(pair[0]).bits >= FINE]
    eight = _eight_bits(problem.items)
    for embeddings, offered in ((eight, fine if eight else []), (None, pairs)):
        for low, high in offered:
            plan = _plan(problem, low, embeddings or high)
            if problem.fits(plan):
                return _raised(problem, plan, low, high)
    problem.check_feasible()
    raise PlanError(
        f"no format fits into {problem.budget:,} bytes at rank {RANK}; offer smaller formats or ranks, or "
        "use the planner 'exact'"
    )


def _raised(problem: Problem, plan: Plan, low: str, high: str) -> Plan:
    """Raise block matrices from ``low`` to ``high`` in the order of the rule, where they fit."""
    blocks = [item for item in _free(problem.items) if item.layer is not None]
    last = last_blocks(blocks)

    def turn(item: Item) -> tuple[bool, int]:
        layer = item.layer or 0
        return SENSITIVE.search(item.name) is None, min(layer, last[item.stack] - layer)

    for item in sorted(blocks, key=turn):
        if plan.precision[item.name] != low:
            continue
        more = _at_rank(problem, {**plan.precision, item.name: high})
        if problem.fits(more):
            plan = more
    return plan


def _eight_bits(items: Sequence[Item]) -> str | None:
    """Return the first format of 8 bits that every embedding and head can choose; None without one."""
    outside = [item for item in _free(items) if item.role in ("embedding", "head")]
    common = [option.format for item in outside[:1] for option in item.options]
    for item in outside[1:]:
        offered = {option.format for option in item.options}
        common = [text for text in common if text in offered]
    return next((text for text in common if parse_format(text).bits == TABLE_BITS), None)


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


def _plan(problem: Problem, low: str, embeddings: str) -> Plan:
    free = {item.name for item in _free(problem.items)}
    precision = {}
    for item in problem.items:
        wanted = embeddings if item.role in ("embedding", "head") else low
        precision[item.name] = wanted if item.name in free else item.options[0].format
    return _at_rank(problem, precision)


def _at_rank(problem: Problem, precision: Mapping[str, str]) -> Plan:
    """The plan of these formats with the offered rank next below :data:`RANK`, or the smallest one."""
    ranks = {}
    for item in problem.items:
        fmt = precision[item.name]
        offered = sorted({option.rank for option in item.options if option.format == fmt})
        ranks[item.name] = max((rank for rank in offered if rank <= RANK), default=min(offered, default=0))
    return problem.find(precision, ranks, "hand-made")
