"""Tilted costs: two numbers per group of matrices parameterize a plan, instead of one choice per matrix.

A group is the matrices of one role in one third of the depth. A plan is the greedy plan under tilted costs:

    cost'_ic = e^(loss_g) · cost_ic − rank_g · λ · adapter_bytes_ic

``loss_g`` scales every loss of the group. ``rank_g`` makes a byte of adapter cheaper (1: free at the margin)
or more expensive (−1: twice the price) than a byte of codes. Together they model errors of the prediction. λ
is the price of a byte, in nats, at the untilted plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bitrank_planner.depths import places_of
from bitrank_planner.greedy import greedy
from bitrank_planner.problem import Item, Option, Problem
from bitrank_planner.search.ladders import Ladders

LIMITS = {"loss": 2.0, "rank": 1.0}  # largest absolute tilts
_THIRDS = ("early", "middle", "late")


class Tilts:
    """The tilts of ``problem``: their names and the plan for given values."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._groups = _groups(problem)
        warm = greedy(problem).choices
        self._price = _price(problem, warm)
        movable = dict.fromkeys(
            g for g, item in zip(self._groups, problem.items, strict=True) if len(item.options) > 1
        )
        ranked = {
            g
            for g, item in zip(self._groups, problem.items, strict=True)
            if len({o.rank for o in item.options}) > 1
        }
        self.names = [
            f"{kind} {group}" for group in movable for kind in LIMITS if kind == "loss" or group in ranked
        ]

    def limit(self, name: str) -> float:
        """Largest absolute value of the tilt called ``name``."""
        return LIMITS[name.split(" ", 1)[0]]

    def random(self, random: np.random.Generator) -> dict[str, float]:
        """Tilts drawn uniformly within their limits."""
        return {name: float(random.uniform(-self.limit(name), self.limit(name))) for name in self.names}

    def choices(self, tilts: Mapping[str, float]) -> tuple[int, ...]:
        """The choices of :func:`~bitrank_planner.greedy` under tilted costs; no tilt gives its own plan."""
        items = tuple(
            _tilted(item, tilts.get(f"loss {group}", 0.0), tilts.get(f"rank {group}", 0.0) * self._price)
            for item, group in zip(self._problem.items, self._groups, strict=True)
        )
        return greedy(replace(self._problem, items=items)).choices


def _groups(problem: Problem) -> list[str]:
    """The group of each item: its role, and if it has a layer, early, middle or late."""
    third = {name: _THIRDS[3 * place // layers] for name, (place, layers) in places_of(problem.items).items()}
    return [f"{item.role} {third[item.name]}" if item.name in third else item.role for item in problem.items]


def _price(problem: Problem, choices: tuple[int, ...]) -> float:
    """Nats per byte of the best step up from ``choices``; 0 if no step up exists."""
    ladders = Ladders(problem, non_dominated_only=True)
    prices = [0.0]
    for item, ladder, place in zip(problem.items, ladders.ladders, ladders.places(choices), strict=True):
        if place + 1 < len(ladder):
            here, above = item.options[ladder[place]], item.options[ladder[place + 1]]
            prices.append((here.cost - above.cost) / (above.nbytes - here.nbytes))
    return max(prices)


def _tilted(item: Item, loss: float, price: float) -> Item:
    bare: dict[str, int] = {}
    for option in item.options:
        bare[option.format] = min(option.nbytes, bare.get(option.format, option.nbytes))
    return replace(
        item,
        options=tuple(
            _tilt(option, loss, price * (option.nbytes - bare[option.format])) for option in item.options
        ),
    )


def _tilt(option: Option, loss: float, gain: float) -> Option:
    return Option(
        option.format, option.rank, option.nbytes, float(np.exp(loss)) * option.cost - gain, option.trainable
    )
