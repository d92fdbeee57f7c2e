"""Planners by name: each maps a planning problem and measured tables to a plan.

Planners that train the plans they consider are in :mod:`~bitrank.planning.short_runs` and
:mod:`~bitrank.planning.race`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from bitrank_planner import (
    SEARCHES,
    Effort,
    Item,
    Plan,
    PlanError,
    Problem,
    bits_only,
    exact,
    greedy,
    random_plan,
    rank_only,
)
from bitrank_planner.heuristics import PRECISION_HEURISTICS, RANK_HEURISTICS

from bitrank.planning.bits_alone import FIXED_RANK, bits_at_lowest_rank, bits_only_plan
from bitrank.planning.hand_made import hand_made
from bitrank.planning.restrictions import TIES, present_groups
from bitrank.planning.rules_of_thumb import (
    HIGH,
    LOW,
    adapted,
    by_precision_rule,
    by_rank_rule,
    common_formats,
    one_format,
)
from bitrank.sensitivity.tables import Tables
from bitrank.spec.races import RACES


@dataclass(frozen=True)
class Planner:
    """A function from a problem and the measured tables to a plan, and its description.

    ``by_cost``: it minimises predicted loss, so costs are corrected for interactions first. ``from_prior``:
    it needs no tables, so it can plan from a ``config.json`` alone. ``effort``: it searches, and takes an
    ``Effort`` as third argument. ``drawn``: it is random, and takes the number of the draw as third argument.
    ``keeps_ties``: tied matrices get one format. ``measured``: it reads measured costs or tables.
    """

    choose: Callable[..., Plan]
    about: str
    by_cost: bool = False
    from_prior: bool = False
    effort: bool = False
    drawn: bool = False
    keeps_ties: bool = True
    measured: bool = True


def uniform(problem: Problem, tables: Tables) -> Plan:
    """Return the plan with one format and one rank for all matrices that has the least predicted cost."""
    return _best(
        (_one_pair(problem, fmt, rank) for fmt in common_formats(problem) for rank in _ranks(problem)),
        problem,
        "uniform",
    )


def exact_plan(problem: Problem, tables: Tables, effort: Effort | None = None) -> Plan:
    """Return the exact plan."""
    return exact(problem, effort)


def greedy_plan(problem: Problem, tables: Tables) -> Plan:
    """The greedy plan."""
    return greedy(problem)


def rank_only_plan(problem: Problem, tables: Tables, effort: Effort | None = None) -> Plan:
    """Return the exact plan with the best single format, to measure the benefit of choosing ranks alone.

    Each format gets the whole effort. The bound holds for plans of this kind.
    """
    plans = [
        plan
        for fmt in common_formats(problem)
        if (plan := _solved(rank_only(problem, fmt), effort)) is not None
    ]
    bounds = [plan.bound for plan in plans if plan.bound is not None]
    return replace(_best(plans, problem, "rank-only"), bound=min(bounds, default=None))


def modelopt_like(problem: Problem, tables: Tables, effort: Effort | None = None) -> Plan:
    """Return the plan of ModelOpt's ``auto_quantize`` with rank 8 everywhere.

    Formats have the least sum of output-error scores, as they are: no repair by rank, no correction for
    interactions. Query, key and value share one format, and so do gate and up projections. Unlike in
    ModelOpt, embeddings and heads are part of the choice, because their bytes are part of the budget.
    """
    scored = replace(problem, items=tuple(_scored(item, tables) for item in problem.items))
    names = [item.name for item in problem.items if item.role != "cross-attention"]
    groups = [group for tie in TIES for group in present_groups(names, tie)]
    given = {name for tie in problem.ties for name in tie}
    own = [group for group in groups if given.isdisjoint(group)]
    tied = replace(bits_only(scored, FIXED_RANK), ties=(*problem.ties, *own))
    plan = exact(tied, effort)
    return problem.find(plan.precision, plan.ranks, "modelopt-like")


def _scored(item: Item, tables: Tables) -> Item:
    """``item`` with the output-error score of the format as the cost of every rank."""
    errors = tables.errors[item.name]
    options = tuple(replace(option, cost=errors[option.format].output) for option in item.options)
    return replace(item, options=options)


def drawn_plan(problem: Problem, tables: Tables, draw: int) -> Plan:
    """Return the random plan number ``draw``."""
    return random_plan(problem, draw)


def _one_pair(problem: Problem, fmt: str, rank: int) -> Plan | None:
    """Return the plan with one format and rank everywhere; None if it is not offered or does not fit.

    Only matrices that can have an adapter get the rank.
    """
    formats = dict.fromkeys((item.name for item in problem.items), fmt)
    ranks = dict.fromkeys((item.name for item in adapted(problem)), rank)
    try:
        plan = problem.find(formats, ranks, "uniform")
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


def _ranks(problem: Problem) -> list[int]:
    """Ranks above 0 that any matrix offers: a uniform plan has an adapter on every matrix."""
    return sorted({option.rank for item in adapted(problem) for option in item.options if option.rank})


def _rules_of_thumb() -> dict[str, Planner]:
    """A planner for each rule of thumb; those that are one format or one rank everywhere have planners of
    their own.
    """
    made = {}
    for name, rank_rule in RANK_HEURISTICS.items():
        if name != "uniform":
            measured = rank_rule.needs is not None
            made[name] = Planner(partial(by_rank_rule, name), rank_rule.about, measured=measured)
    for name, precision_rule in PRECISION_HEURISTICS.items():
        if name != "all_in":
            made[name] = Planner(
                partial(by_precision_rule, name),
                precision_rule.about,
                keeps_ties=False,
                measured=precision_rule.needs is not None,
            )
    return made


PLANNERS: dict[str, Planner] = {
    "exact": Planner(
        exact_plan, "the plan of least predicted loss", by_cost=True, from_prior=True, effort=True
    ),
    "greedy": Planner(greedy_plan, "steps of the best ratio of loss to bytes", by_cost=True, from_prior=True),
    "uniform": Planner(uniform, "one format and one rank for all matrices", from_prior=True),
    "hand-made": Planner(
        hand_made,
        "8-bit embeddings and heads, one format for all blocks and rank 8; what is left raises values, "
        "attention outputs and down projections first",
        from_prior=True,
        keeps_ties=False,
        measured=False,
    ),
    "bits-only": Planner(
        bits_only_plan, "the exact plan with rank 8 everywhere", by_cost=True, from_prior=True, effort=True
    ),
    "bits-at-lowest-rank": Planner(
        bits_at_lowest_rank,
        "the exact plan with the smallest rank offered everywhere",
        by_cost=True,
        from_prior=True,
        effort=True,
    ),
    "rank-only": Planner(
        rank_only_plan,
        "the exact plan with one format everywhere",
        by_cost=True,
        from_prior=True,
        effort=True,
    ),
    "modelopt-like": Planner(
        modelopt_like,
        "formats as ModelOpt's auto_quantize chooses them: output-error scores as they are, one format for "
        "fused matrices, rank 8",
        effort=True,
    ),
    "random-plan": Planner(
        drawn_plan,
        "a random plan that fits; several draws are the null distribution of a planner",
        from_prior=True,
        drawn=True,
        keeps_ties=False,
        measured=False,
    ),
    "all-4": Planner(
        partial(one_format, "all-4", LOW),
        f"{LOW} everywhere, ranks as large as the budget allows",
        measured=False,
    ),
    "all-8": Planner(
        partial(one_format, "all-8", HIGH),
        f"{HIGH} everywhere, ranks as large as the budget allows",
        measured=False,
    ),
    **_rules_of_thumb(),
}


def plan_by(name: str, problem: Problem, tables: Tables, effort: Effort, draw: int = 0) -> Plan:
    """The plan of the planner called ``name``; ``effort`` is for those that search, ``draw`` for random
    ones.
    """
    planner = PLANNERS[name]
    if planner.drawn:
        return planner.choose(problem, tables, draw)
    return planner.choose(problem, tables, effort) if planner.effort else planner.choose(problem, tables)


def planner_names() -> list[str]:
    """Every planner, those that evaluate plans by short trainings last."""
    return [*PLANNERS, *SEARCHES, *RACES]


def is_measured(name: str) -> bool:
    """Whether ``name``, a planner, a search or a race, reads measured costs or tables."""
    return name not in PLANNERS or PLANNERS[name].measured


def by_cost(name: str) -> bool:
    """Whether the planner called ``name`` minimises predicted loss, so that costs are corrected for
    interactions first.
    """
    return name in SEARCHES or name in RACES or PLANNERS[name].by_cost
