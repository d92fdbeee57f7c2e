"""Greedy solver: one-step downgrades from the best options until the plan fits, as QR-Adaptor starts."""

from __future__ import annotations

import heapq

from bitrank_planner.errors import PlanError
from bitrank_planner.problem import Option, Plan, Problem, non_dominated
from bitrank_planner.ties import join_ties


def greedy(problem: Problem) -> Plan:
    """Start every matrix at its least loss and repeat the downgrade that loses least per byte it frees.

    Ties go to the earlier matrix. Once the plan fits, single upgrades spend the remaining bytes, largest
    reduction of loss per byte first. Raises :class:`~bitrank_planner.Infeasible` if no plan fits, and
    :class:`PlanError` for a problem with a limit on trainable numbers: single steps cannot trade two limits
    against each other.
    """
    if problem.max_trainable is not None:
        raise PlanError(
            "greedy knows one limit, bytes; for a limit on trainable numbers use the solver 'exact'"
        )
    problem.check_feasible()
    if problem.ties:
        joined = join_ties(problem)
        return joined.expand(greedy(joined.problem))
    choices = [non_dominated(item) for item in problem.items]
    ladders = []
    for item, ladder in zip(problem.items, choices, strict=True):
        ladders.append([item.options[choice] for choice in ladder])
    places = [len(ladder) - 1 for ladder in ladders]
    spare = problem.available - sum(ladder[-1].nbytes for ladder in ladders)
    spare = _go_down(ladders, places, spare)
    _buy_back(ladders, places, spare)
    return problem.plan([ladder[place] for ladder, place in zip(choices, places, strict=True)], "greedy")


def _go_down(ladders: list[list[Option]], places: list[int], spare: int) -> int:
    """Step down in ``places``, in place, until ``spare`` bytes are not negative; return the new ``spare``."""
    heap = [
        (_price(ladder, place), i)
        for i, (ladder, place) in enumerate(zip(ladders, places, strict=True))
        if place
    ]
    heapq.heapify(heap)
    while spare < 0:
        i = heapq.heappop(heap)[1]
        spare += _gap(ladders[i], places[i])
        places[i] -= 1
        if places[i]:
            heapq.heappush(heap, (_price(ladders[i], places[i]), i))
    return spare


def _buy_back(ladders: list[list[Option]], places: list[int], spare: int) -> None:
    """Take single upgrades that fit, in place, most loss saved per byte first.

    ``spare`` only shrinks, so a step that does not fit is never tried again.
    """
    heap = [
        (-_price(ladder, place + 1), i)
        for i, (ladder, place) in enumerate(zip(ladders, places, strict=True))
        if place + 1 < len(ladder)
    ]
    heapq.heapify(heap)
    while heap:
        i = heapq.heappop(heap)[1]
        if (needed := _gap(ladders[i], places[i] + 1)) > spare:
            continue
        spare -= needed
        places[i] += 1
        if places[i] + 1 < len(ladders[i]):
            heapq.heappush(heap, (-_price(ladders[i], places[i] + 1), i))


def _price(ladder: list[Option], place: int) -> float:
    """Loss in nats per byte freed by the step from ``place`` to ``place - 1``."""
    return (ladder[place - 1].cost - ladder[place].cost) / _gap(ladder, place)


def _gap(ladder: list[Option], place: int) -> int:
    return ladder[place].nbytes - ladder[place - 1].nbytes
