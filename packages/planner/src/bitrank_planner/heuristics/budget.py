"""Apply a heuristic rank rule to a byte budget: formats are given, the mean rank is the largest that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bitrank_planner.errors import Infeasible, PlanError
from bitrank_planner.problem import Item, Plan, Problem

_STEPS = 16  # resolution of the mean rank: 1/16


def at_budget(
    problem: Problem, precision: Mapping[str, str], ranks_for_mean: Callable[[float], dict[str, int]]
) -> Plan:
    """Return the plan of the largest mean rank, in steps of 1/16 from 1, that fits the budget of ``problem``.

    ``precision`` maps every matrix to its format. ``ranks_for_mean`` is a rule of :data:`RANK_HEURISTICS`
    with every argument but the mean bound. Each rank of the rule is rounded down to a rank that ``problem``
    offers for the matrix in its format, or up to the smallest offered rank.

    Bisection finds the mean, which assumes that bytes grow with it; rounding can violate this and cost a few
    steps. A mean for which the rule raises :class:`PlanError` counts as too large, except a mean of 1.

    Raises :class:`~bitrank_planner.Infeasible` if mean rank 1 exceeds the budget, :class:`PlanError` for a
    format that is not offered.
    """
    plan = _plan(problem, precision, ranks_for_mean(1.0))
    if not problem.fits(plan):
        raise Infeasible(
            f"these formats take {plan.nbytes:,} bytes and train {plan.trainable:,} numbers at mean rank 1, "
            "above the limits "
            f"({problem.budget:,} bytes); give smaller formats or a larger budget",
            plan.nbytes,
        )
    most = max(max(min(item.shape), option.rank) for item in problem.items for option in item.options)
    low, high = _STEPS, _STEPS * most + 1
    while high - low > 1:
        middle = (low + high) // 2
        tried = _tried(problem, precision, ranks_for_mean, middle / _STEPS)
        if tried is not None and problem.fits(tried):
            low, plan = middle, tried
        else:
            high = middle
    return plan


def _tried(
    problem: Problem,
    precision: Mapping[str, str],
    ranks_for_mean: Callable[[float], dict[str, int]],
    mean: float,
) -> Plan | None:
    try:
        ranks = ranks_for_mean(mean)
    except PlanError:
        return None
    return _plan(problem, precision, ranks)


def _plan(problem: Problem, precision: Mapping[str, str], ranks: Mapping[str, int]) -> Plan:
    missing = [item.name for item in problem.items if item.name not in precision]
    if missing:
        raise PlanError(
            f"no format for {len(missing)} of {len(problem.items)} matrices, {missing[0]} first; name one "
            "for every matrix"
        )
    return problem.find(
        precision,
        {item.name: _offered(item, precision[item.name], ranks.get(item.name, 0)) for item in problem.items},
        "rule",
    )


def _offered(item: Item, fmt: str, rank: int) -> int:
    """The largest rank offered in ``fmt`` up to ``rank``, else the smallest one.

    A rule that gives a matrix some rank gets some: rank 0 is for matrices to which the rule gives 0. Returns
    ``rank`` itself if ``fmt`` is not offered; :meth:`Problem.find` then raises the error.
    """
    offered = sorted({option.rank for option in item.options if option.format == fmt})
    if rank > 0 and offered and offered[-1] > 0:
        offered = [r for r in offered if r > 0]
    below = [r for r in offered if r <= rank]
    return below[-1] if below else min(offered, default=rank)
