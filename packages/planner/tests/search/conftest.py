"""Small problems with known answers, shared by the tests of the searches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
from bitrank_planner.problem import Item, Option, Plan, Problem

Evaluate = Callable[[Plan], float]


def tiny_problem() -> Problem:
    """Three matrices with two formats and two ranks: 64 plans, half of which fit."""
    items = tuple(
        Item(
            f"m{i}",
            tuple(Option(f"int{b}", r, 10 * b + r, i / b + 1 / r) for b in (2, 4) for r in (1, 4)),
            "ffn",
            i,
            (8, 8),
        )
        for i in range(1, 4)
    )
    return Problem(items, 100)


def plans(problem: Problem) -> Iterator[Plan]:
    every = product(*(range(len(item.options)) for item in problem.items))
    return (plan for plan in (problem.plan(choices, "all") for choices in every) if problem.fits(plan))


def unpredictable(plan: Plan) -> float:
    """A loss unrelated to the predicted cost: a random number seeded by the choices.

    No two plans have the same loss.
    """
    return float(np.random.default_rng(sum(choice * 10**i for i, choice in enumerate(plan.choices))).random())


def separable(matrices: int = 24, seed: int = 0) -> tuple[Problem, Evaluate]:
    """A problem and a loss: the predicted cost times one factor per role and another per matrix."""
    random = np.random.default_rng(seed)
    items, factors = [], []
    for i in range(matrices):
        scale, role = float(10 ** random.uniform(-2, 0)), ("attention", "ffn")[i % 2]
        options = tuple(
            Option(f"int{b}", r, 100 * b + 8 * r, scale * 4.0 ** (2 - b) * (1 - 0.1 * math.log2(r)))
            for b in (2, 3, 4, 8)
            for r in (2, 4, 8, 16)
        )
        items.append(Item(f"m{i}", options, role, i // 2, (32, 32)))
        factors.append({"attention": 3.0, "ffn": 0.3}[role] * float(np.exp(random.normal(0, 0.3))))
    problem = Problem(tuple(items), matrices * 350)
    return problem, lambda plan: math.fsum(
        f * i.options[c].cost for f, i, c in zip(factors, items, plan.choices, strict=True)
    )


@pytest.fixture
def tiny() -> Problem:
    return tiny_problem()


@pytest.fixture(scope="session")
def synthetic() -> tuple[Problem, Evaluate]:
    return separable()


@pytest.fixture
def every_plan(tiny: Problem) -> list[Plan]:
    return list(plans(tiny))


@pytest.fixture
def unpredictable_loss() -> Evaluate:
    return unpredictable
