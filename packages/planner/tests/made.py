"""Problems for the tests: small random ones with all their plans, and ones of the size of language models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
from bitrank_planner import Item, Option, Plan, Problem
from hypothesis import strategies as st

FORMATS = {"int2-g64": 2.5, "int3-g64": 3.5, "int4-g64": 4.5, "int8-g64": 8.5, "bf16": 16.0}
RANKS = (0, 2, 4, 8, 16, 32, 48, 64)


def every_plan(problem: Problem) -> Iterator[Plan]:
    """All plans, infeasible ones included."""
    for choices in product(*(range(len(item.options)) for item in problem.items)):
        yield problem.plan(choices, "all")


@st.composite
def small_problems(draw: st.DrawFn, limited: bool = False) -> Problem:
    """Up to five matrices of up to five options under a budget near the sizes of the plans.

    Bytes have a common factor or none; costs have any scale and sign.
    """
    unit, scale = draw(st.sampled_from([1, 64, 1_000_003])), draw(st.sampled_from([1e-8, 1.0, 1e8]))
    option = st.builds(
        lambda fmt, rank, units, cost, numbers: Option(fmt, rank, unit * units, scale * cost, numbers),
        st.sampled_from(["int2", "int4", "int8"]),
        st.sampled_from([0, 2, 8]),
        st.integers(0, 40),
        st.one_of(st.integers(0, 6).map(float), st.floats(-3, 10, allow_subnormal=False)),
        st.integers(0, 9),
    )
    ways = draw(
        st.lists(
            st.lists(option, min_size=1, max_size=5, unique_by=lambda o: (o.format, o.rank)),
            min_size=1,
            max_size=5,
        )
    )
    items = tuple(Item(f"m{i}", tuple(options), shape=(8, 8)) for i, options in enumerate(ways))
    sizes = [sum(pick(o.nbytes for o in item.options) for item in items) for pick in (min, max)]
    fixed = draw(st.integers(0, 100))
    budget = fixed + draw(st.integers(sizes[0] - unit, sizes[1] + unit))
    return Problem(items, max(budget, 0), fixed, draw(st.integers(0, 9 * len(items))) if limited else None)


def language_model(matrices: int, bits: float, seed: int = 0) -> Problem:
    """Seven matrices per layer with 40 options each (five formats, eight ranks).

    ``bits`` is the budget per weight, adapters included. Costs decrease with bits and rank as measured ones
    do; each matrix has a random scale and slope, and each cost has noise.
    """
    random = np.random.default_rng(seed)
    shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
    items = tuple(_matrix(f"m{i}", shapes[i % 7], i // 7, random) for i in range(matrices))
    weights = sum(math.prod(item.shape) for item in items)
    return Problem(items, int(bits * weights / 8))


def _matrix(name: str, shape: tuple[int, int], layer: int, random: np.random.Generator) -> Item:
    scale, slope = float(np.exp(random.normal(-3, 1.5))), float(random.uniform(0.05, 0.4))
    options = tuple(
        Option(
            fmt,
            rank,
            int(bits * math.prod(shape) / 8) + 2 * rank * sum(shape),
            scale * 4 ** (2.5 - bits) * (1 + rank) ** -slope * float(np.exp(random.normal(0, 0.05))),
            rank * sum(shape),
        )
        for fmt, bits in FORMATS.items()
        for rank in RANKS
    )
    role = "attention" if shape[0] < 1536 and shape[1] < 1536 else "ffn"
    return Item(name, options, role, layer, shape)
