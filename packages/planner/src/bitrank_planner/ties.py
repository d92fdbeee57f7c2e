"""Ties: matrices that share a format become one item, so that solvers without ties solve problems with them.

The options of a joined item are the formats that all members offer, each with every combination of the
members' ranks. A combination that another one in the same format dominates (no more bytes, cost and trained
numbers) is left out: exchanging the two changes no other item, so a best plan without it exists. The joined
problem therefore has the same least cost as the problem with ties, and its bounds hold for both. Members are
combined one at a time, which keeps the intermediate results small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitrank_planner.problem import Item, Option, Plan, Problem, front, shared_formats

Combination = tuple[int, ...]  # index of an option for each member


@dataclass(frozen=True)
class Joined:
    """``problem`` without ties, whose item j stands for the items ``members[j]`` of ``tied``.

    Option c of item j is the combination ``combinations[j][c]`` of the members' options.
    """

    tied: Problem
    problem: Problem
    members: list[tuple[str, ...]]
    combinations: list[list[Combination]]

    def expand(self, plan: Plan) -> Plan:
        """Return the plan of the tied problem that ``plan``, of the joined problem, means."""
        choice_of: dict[str, int] = {}
        for names, combinations, choice in zip(self.members, self.combinations, plan.choices, strict=True):
            choice_of |= dict(zip(names, combinations[choice], strict=True))
        expanded = self.tied.plan([choice_of[item.name] for item in self.tied.items], plan.solver)
        bound = None if plan.bound is None else min(plan.bound, expanded.cost)
        return replace(expanded, bound=bound)


def join_ties(problem: Problem) -> Joined:
    """Return ``problem`` with each of its ties joined to one item."""
    limited = problem.max_trainable is not None
    items: list[Item] = []
    members: list[tuple[str, ...]] = []
    combinations: list[list[Combination]] = []
    for group in problem.groups:
        members.append(tuple(item.name for item in group))
        if len(group) == 1:
            items.append(group[0])
            combinations.append([(choice,) for choice in range(len(group[0].options))])
            continue
        joined = [
            combined for fmt in shared_formats(group) for combined in _combinations(group, fmt, limited)
        ]
        items.append(Item(" + ".join(members[-1]), tuple(option for option, _ in joined)))
        combinations.append([combination for _, combination in joined])
    return Joined(problem, replace(problem, items=tuple(items), ties=()), members, combinations)


def _combinations(group: Sequence[Item], fmt: str, limited: bool) -> list[tuple[Option, Combination]]:
    """The non-dominated combinations of the members' options in ``fmt``, with their sums."""
    figures_CK = np.zeros((1, 3))  # columns: bytes, cost, trained numbers
    found: list[Combination] = [()]
    for item in group:
        choices = [index for index, option in enumerate(item.options) if option.format == fmt]
        options = [item.options[index] for index in choices]
        member_OK = np.array([(o.nbytes, o.cost, o.trainable) for o in options], dtype=float)
        figures_CK = (figures_CK[:, None] + member_OK).reshape(-1, 3)
        compared_CK = figures_CK if limited else figures_CK * (1.0, 1.0, 0.0)
        kept = front(compared_CK)
        figures_CK = figures_CK[kept]
        found = [(*found[index // len(choices)], choices[index % len(choices)]) for index in kept]
    joined = []
    for combination in found:
        chosen = [item.options[index] for item, index in zip(group, combination, strict=True)]
        joined.append((_sum(fmt, chosen), combination))
    return joined


def _sum(fmt: str, options: Sequence[Option]) -> Option:
    return Option(
        fmt,
        sum(option.rank for option in options),
        sum(option.nbytes for option in options),
        sum(option.cost for option in options),
        sum(option.trainable for option in options),
    )
