"""A race of exact plans: the better half of them survives each round of short trainings.

The candidates are exact plans for different costs: output-error scores, Fisher estimates, and those that are
calibrated for interactions, each with all ranks and without small ranks. Successive halving (Jamieson and
Talwalkar 2016) trains the remaining plans for twice the steps of the round before, and ranks them by loss on
validation data. Only the choice among the candidates is trained, so a race is cheaper than a search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from bitrank_planner import Effort, Found, Item, Journal, Plan, PlanError, Problem, exact

from bitrank.spec.races import RACES

Evaluate = Callable[[Plan], float]


def candidates(name: str, problems: Sequence[Problem], seconds: float) -> list[Plan]:
    """Return the distinct plans of the race called ``name``: exact plans for each of ``problems``.

    The first problem is the reference: plans have its costs. ``seconds`` limits each solution. A smallest
    rank that does not fit the budget gives no candidate. Raises :class:`PlanError` if no plan fits.
    """
    reference, found = problems[0], dict[tuple[int, ...], Plan]()
    reference.check_feasible()
    for problem in problems:
        for least in RACES[name].least_ranks:
            limited = replace(problem, items=tuple(_from_rank(item, least) for item in problem.items))
            try:
                plan = exact(limited, Effort(seconds))
            except PlanError:
                continue
            plan = reference.find(plan.precision, plan.ranks, name)
            found[plan.choices] = plan
    if not found:
        raise PlanError(f"no plan of the {name} fits into {reference.budget:,} bytes; give more bytes")
    return list(found.values())


def _from_rank(item: Item, least: int) -> Item:
    """``item`` without ranks below ``least``, if it offers larger ones."""
    kept = tuple(option for option in item.options if option.rank >= least)
    return replace(item, options=kept) if kept else item


def run_race(
    plans: Sequence[Plan],
    problem: Problem,
    evaluate: Callable[[int], Evaluate],
    steps: int,
    journal: Path,
) -> Found:
    """Return the winner among ``plans`` with its loss in the last round, and the cost of all rounds.

    ``evaluate(steps)`` returns the function from a plan to its validation loss in nats after that many steps.
    Round k has ``steps`` · 2^k steps and a journal of its own beside ``journal``, from which an interrupted
    race resumes. Of an odd number the larger half survives. A single plan is not trained: its loss is NaN.
    Raises :class:`PlanError` if every training of a round diverges.
    """
    left, evaluations, seconds, value = list(plans), 0, 0.0, float("nan")
    for number in count():
        if len(left) == 1:
            break
        length = steps * 2**number
        rounds = Journal(problem, journal.with_suffix(f".{length}.jsonl"))
        trained = evaluate(length)
        losses = {plan.choices: rounds.evaluate(plan, trained) for plan in left}
        value = rounds.best().value
        left = sorted(left, key=lambda plan: losses[plan.choices])[: (len(left) + 1) // 2]
        evaluations, seconds = evaluations + len(losses), seconds + rounds.seconds
    return Found(left[0], value, evaluations, seconds)
