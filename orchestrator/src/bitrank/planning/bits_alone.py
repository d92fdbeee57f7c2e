"""Planners that choose formats exactly and give every matrix one rank: controls of choosing ranks too."""

from __future__ import annotations

from dataclasses import replace

from bitrank_planner import Effort, Plan, Problem, bits_only, exact

from bitrank.sensitivity.tables import Tables

FIXED_RANK = 8  # rank of planners that choose bits alone; the study's choice


def bits_only_plan(problem: Problem, tables: Tables, effort: Effort | None = None) -> Plan:
    """Return the exact plan with rank 8 everywhere, to measure the benefit of choosing bits alone.

    Its bound holds for plans of this kind.
    """
    return replace(exact(bits_only(problem, FIXED_RANK), effort), solver="bits-only")


def bits_at_lowest_rank(problem: Problem, tables: Tables, effort: Effort | None = None) -> Plan:
    """Return the exact plan with the smallest rank offered, above 0, everywhere.

    Where exact plans take this rank almost everywhere, it tells what the other ranks are worth. Its bound
    holds for plans of this kind. Raises :class:`~bitrank_planner.PlanError` if a matrix does not offer it.
    """
    ranks = {option.rank for item in problem.items for option in item.options if option.rank}
    lowest = bits_only(problem, min(ranks, default=0))
    return replace(exact(lowest, effort), solver="bits-at-lowest-rank")
