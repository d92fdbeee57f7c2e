"""Rules of thumb as planners: they assign formats or ranks by place, norms or activations, and no costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bitrank_planner import Item, Plan, PlanError, Problem
from bitrank_planner.heuristics import PRECISION_HEURISTICS, RANK_HEURISTICS, THREE_BITS, at_budget

from bitrank.planning.bits_alone import FIXED_RANK
from bitrank.sensitivity.tables import Tables

HIGH, LOW = "int8", "nf4-dq"  # the two formats of the precision heuristics; the study's choice


def adapted(problem: Problem) -> list[Item]:
    """Return the matrices that may have an adapter."""
    return [item for item in problem.items if any(option.rank for option in item.options)]


def common_formats(problem: Problem) -> list[str]:
    """Return the formats that every matrix offers, the smallest total bytes first."""
    common = list(_smallest(problem.items[0]))
    sizes = dict.fromkeys(common, 0)
    for smallest in map(_smallest, problem.items):
        common = [fmt for fmt in common if fmt in smallest]
        for fmt in common:
            sizes[fmt] += smallest[fmt]
    return sorted(common, key=sizes.__getitem__)


def _smallest(item: Item) -> dict[str, int]:
    """The fewest bytes of ``item`` in each format that it offers, in the order of its options."""
    found: dict[str, int] = {}
    for option in item.options:
        found[option.format] = min(option.nbytes, found.get(option.format, option.nbytes))
    return found


def by_rank_rule(name: str, problem: Problem, tables: Tables) -> Plan:
    """Assign ranks by a heuristic over a single format.

    The format is the one with the most bits that leaves a mean rank of at least one.
    """
    items = adapted(problem)
    rule = partial(RANK_HEURISTICS[name], items, **_rank_measurement(name, items, tables))
    common = common_formats(problem)
    if not common:
        raise PlanError(
            f"the rule {name} needs one format for all matrices, and pins or a runtime leave them none in "
            "common; leave out pins, or use the planner 'exact'"
        )
    for fmt in reversed(common):
        try:
            return replace(at_budget(problem, {i.name: fmt for i in problem.items}, rule), solver=name)
        except PlanError as error:
            last = error
    raise last


def by_precision_rule(name: str, problem: Problem, tables: Tables) -> Plan:
    """Assign formats by a heuristic (int8 and NF4), and the largest equal rank that the budget allows.

    A heuristic that goes by rank has the ranks of ``gradient_probe``, in the mean as large as the budget
    allows. It is about matrices with an adapter; the others, such as the embedding, are in NF4.
    """
    if PRECISION_HEURISTICS[name].needs == "ranks":
        return _by_rank(name, problem, tables)
    options: dict[str, Any] = {"high": HIGH, "low": LOW}
    if PRECISION_HEURISTICS[name].needs == "added_loss":
        added = {i.name: tables.errors[i.name][THREE_BITS].output for i in problem.items}
        options = {"high": LOW, "low": THREE_BITS, "added_loss": added}
    precision = PRECISION_HEURISTICS[name](problem.items, **options)
    uniform = partial(RANK_HEURISTICS["uniform"], adapted(problem))
    return replace(at_budget(problem, precision, uniform), solver=name)


def _by_rank(name: str, problem: Problem, tables: Tables) -> Plan:
    items = adapted(problem)
    ranks = partial(RANK_HEURISTICS["gradient_probe"], items, importance=_importance(items, tables))
    precision = {item.name: LOW for item in problem.items}
    precision |= PRECISION_HEURISTICS[name](items, high=HIGH, low=LOW, ranks=ranks(float(FIXED_RANK)))
    return replace(at_budget(problem, precision, ranks), solver=name)


def one_format(name: str, fmt: str, problem: Problem, _tables: Tables) -> Plan:
    """One format everywhere, and ranks as large as the budget lets them be, the same everywhere."""
    items = adapted(problem)
    plan = at_budget(
        problem, {i.name: fmt for i in problem.items}, partial(RANK_HEURISTICS["uniform"], items)
    )
    return replace(plan, solver=name)


def _rank_measurement(name: str, items: Sequence[Item], tables: Tables) -> dict[str, Any]:
    """The measurement that the rank rule called ``name`` takes, by the name of its argument."""
    needs = RANK_HEURISTICS[name].needs
    return {} if needs is None else {needs: _MEASURED[needs](items, tables)}


def _importance(items: Sequence[Item], tables: Tables) -> dict[str, float]:
    return {item.name: tables.moments[item.name].importance for item in items}


def _norms(items: Sequence[Item], tables: Tables) -> dict[str, float]:
    return {item.name: tables.moments[item.name].norm for item in items}


def _ratios(items: Sequence[Item], tables: Tables) -> dict[str, list[float]]:
    ratios = {}
    for item in items:
        moments = tables.moments[item.name]
        ratios[item.name] = (moments.input_K / moments.column_I.sum()).tolist()
    return ratios


# Measurements that rules of thumb name in their registry entry.
_MEASURED: dict[str, Callable[[Sequence[Item], Tables], Any]] = {
    "importance": _importance,
    "norms": _norms,
    "ratios": _ratios,
}
