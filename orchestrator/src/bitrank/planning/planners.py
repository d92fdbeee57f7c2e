"""Planners by name: each maps a planning problem and measured tables to a plan.

Planners that train the plans they consider are in :mod:`~bitrank.planning.short_runs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from bitrank_planner import Effort, Item, Plan, PlanError, Problem, bits_only, exact, greedy, rank_only
from bitrank_planner.heuristics import PRECISION_HEURISTICS, RANK_HEURISTICS, at_budget

from bitrank.sensitivity.tables import Tables

Planner = Callable[[Problem, Tables], Plan]
FIXED_RANK = 8  # of the bits-only planner; the study's choice
HIGH, LOW = "int8", "nf4-dq"  # of the precision heuristics; the study's choice


def uniform(problem: Problem, tables: Tables) -> Plan:
    """Return the plan with one format and one rank for all matrices that has the least predicted cost."""
    return _best(
        (_one_pair(problem, fmt, rank) for fmt in _formats(problem) for rank in _ranks(problem)),
        problem,
        "uniform",
    )


def joint(problem: Problem, tables: Tables, effort: Effort | None = None) -> Plan:
    """Return the exact plan."""
    return exact(problem, effort)


def bits(problem: Problem, tables: Tables, effort: Effort | None = None) -> Plan:
    """Return the exact plan with rank 8 everywhere, to measure the benefit of choosing bits alone.

    Its bound holds for plans of this kind.
    """
    return replace(exact(bits_only(problem, FIXED_RANK), effort), solver="bits-only")


def ranks(problem: Problem, tables: Tables, effort: Effort | None = None) -> Plan:
    """Return the exact plan with the best single format, to measure the benefit of choosing ranks alone.

    Each format gets the whole effort. The bound holds for plans of this kind.
    """
    plans = [
        plan for fmt in _formats(problem) if (plan := _solved(rank_only(problem, fmt), effort)) is not None
    ]
    bounds = [plan.bound for plan in plans if plan.bound is not None]
    return replace(_best(plans, problem, "rank-only"), bound=min(bounds, default=None))


def _one_pair(problem: Problem, fmt: str, rank: int) -> Plan | None:
    """Return the plan with one format and rank everywhere; None if it is not offered or does not fit.

    Only matrices that can have an adapter get the rank.
    """
    try:
        plan = problem.find(
            {i.name: fmt for i in problem.items}, {i.name: rank for i in _adapted(problem)}, "uniform"
        )
    except PlanError:
        return None
    return plan if problem.fits(plan) else None


def _solved(problem: Problem, effort: Effort | None) -> Plan | None:
    try:
        return exact(problem, effort)
    except PlanError:
        return None


def _best(plans: Iterable[Plan | None], problem: Problem, solver: str) -> Plan:
    fitting = [plan for plan in plans if plan is not None]
    if not fitting:
        problem.check_feasible()
        raise PlanError(
            f"no plan of the kind {solver!r} fits into {problem.budget:,} bytes; give more bytes, or use the "
            "planner 'exact'"
        )
    return replace(min(fitting, key=lambda plan: plan.cost), solver=solver)


def _by_rank_rule(name: str, problem: Problem, tables: Tables) -> Plan:
    """Assign ranks by a heuristic over a single format.

    The format is the one with the most bits that leaves a mean rank of at least one.
    """
    rule, items = _filled(name, _adapted(problem), tables), _adapted(problem)
    for fmt in reversed(_formats(problem)):
        try:
            return replace(
                at_budget(problem, {i.name: fmt for i in problem.items}, partial(rule, items)), solver=name
            )
        except PlanError as error:
            last = error
    raise last


def _by_precision_rule(name: str, problem: Problem, tables: Tables) -> Plan:
    """Assign formats by a heuristic (int8 and NF4), and the largest equal rank that the budget allows."""
    items = _adapted(problem)
    options: dict[str, object] = {"high": HIGH, "low": LOW}
    if name == "three_bits_on_least_sensitive":
        options = {
            "high": LOW,
            "added_loss": {i.name: tables.errors[i.name]["int3-g64"].divergence for i in problem.items},
        }
    if name in {"low_rank_more_bits", "low_rank_fewer_bits"}:
        options["ranks"] = RANK_HEURISTICS["gradient_probe"](
            items, float(FIXED_RANK), _importance(items, tables)
        )
    precision = PRECISION_HEURISTICS[name](problem.items, **options)
    return replace(at_budget(problem, precision, partial(RANK_HEURISTICS["uniform"], items)), solver=name)


def _extreme(fmt: str, problem: Problem, tables: Tables) -> Plan:
    """Assign one format everywhere, and the largest equal rank that the budget allows."""
    items = _adapted(problem)
    return at_budget(
        problem, {i.name: fmt for i in problem.items}, partial(RANK_HEURISTICS["uniform"], items)
    )


def _filled(
    name: str, items: Sequence[Item], tables: Tables
) -> Callable[[Sequence[Item], float], dict[str, int]]:
    """Return the rank heuristic called ``name`` with its measurements bound."""
    rule = RANK_HEURISTICS[name]
    if name in {"gradient_probe", "two_stage"}:
        return lambda over, mean: rule(over, mean, _importance(items, tables))
    if name == "parameter_norm":
        return lambda over, mean: rule(over, mean, {i.name: tables.moments[i.name].norm for i in items})
    if name == "activation":
        ratios = {
            i.name: (tables.moments[i.name].input_K / tables.moments[i.name].column_I.sum()).tolist()
            for i in items
        }
        return lambda over, mean: rule(over, mean, ratios)
    return rule


def _importance(items: Sequence[Item], tables: Tables) -> dict[str, float]:
    return {item.name: tables.moments[item.name].importance for item in items}


def _adapted(problem: Problem) -> list[Item]:
    return [item for item in problem.items if any(option.rank for option in item.options)]


def _formats(problem: Problem) -> list[str]:
    """Return the formats that every matrix offers, the smallest total bytes first."""
    offered = [dict.fromkeys(option.format for option in item.options) for item in problem.items]
    common = [fmt for fmt in offered[0] if all(fmt in formats for formats in offered)]
    sizes = {
        fmt: sum(min(o.nbytes for o in item.options if o.format == fmt) for item in problem.items)
        for fmt in common
    }
    return sorted(common, key=sizes.__getitem__)


def _ranks(problem: Problem) -> list[int]:
    return sorted({option.rank for item in _adapted(problem) for option in item.options})


PLANNERS: dict[str, Planner] = {
    "exact": joint,
    "greedy": lambda problem, tables: greedy(problem),
    "uniform": uniform,
    "bits-only": bits,
    "rank-only": ranks,
    "all-4": partial(_extreme, "nf4-dq"),
    "all-8": partial(_extreme, "int8"),
    **{name: partial(_by_rank_rule, name) for name in RANK_HEURISTICS if name != "uniform"},
    **{name: partial(_by_precision_rule, name) for name in PRECISION_HEURISTICS if name != "all_in"},
}
_SEARCHED: dict[str, Callable[[Problem, Tables, Effort], Plan]] = {
    "exact": joint,
    "bits-only": bits,
    "rank-only": ranks,
}


def plan_by(name: str, problem: Problem, tables: Tables, effort: Effort) -> Plan:
    """Return the plan of the planner called ``name``; ``effort`` limits planners that search."""
    if name in _SEARCHED:
        return _SEARCHED[name](problem, tables, effort)
    return PLANNERS[name](problem, tables)
