"""One-step downgrades: from the best of everything down until the budget holds (QR-Adaptor's way of starting)."""

from __future__ import annotations

import heapq

from bitrank_planner.errors import PlanError
from bitrank_planner.problem import Option, Plan, Problem, worth_having


def greedy(problem: Problem) -> Plan:
    """Start every matrix at its least loss; take, again and again, the downgrade that loses least per byte it frees.

    Ties go to the earlier matrix. Once the plan fits, what is left of the budget buys back single upgrades, best first.
    Raises :class:`~bitrank_planner.Infeasible`, or :class:`PlanError` when a limit on trainable numbers is given: single steps
    cannot trade two limits against each other.
    """
    problem.check_feasible()
    if problem.max_trainable is not None:
        raise PlanError(
            "greedy knows one limit, bytes; for a limit on trainable numbers use the solver 'exact'"
        )
    choices = [worth_having(item) for item in problem.items]
    ladders = [[item.options[c] for c in ladder] for item, ladder in zip(problem.items, choices, strict=True)]
    places = [len(ladder) - 1 for ladder in ladders]
    spare = problem.available - sum(ladder[-1].nbytes for ladder in ladders)
    spare = _go_down(ladders, places, spare)
    _buy_back(ladders, places, spare)
    return problem.plan([ladder[place] for ladder, place in zip(choices, places, strict=True)], "greedy")


def _go_down(ladders: list[list[Option]], places: list[int], spare: int) -> int:
    """Step down in ``places`` until ``spare`` bytes are not negative; the bytes spare then."""
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
    """Single steps up that fit, most nats per byte first. A step that does not fit now will not fit later."""
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
    """Nats lost per byte freed by the step from ``place`` down."""
    return (ladder[place - 1].cost - ladder[place].cost) / _gap(ladder, place)


def _gap(ladder: list[Option], place: int) -> int:
    return ladder[place].nbytes - ladder[place - 1].nbytes
