"""The relaxation solved by sorting against the same linear program solved by HiGHS."""

from __future__ import annotations

import numpy as np
import pytest
from bitrank_planner.lp_relaxation import hull_price
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import csr_array


@st.composite
def monotone_items(draw: st.DrawFn) -> list[list[tuple[int, float]]]:
    """One to six items of one to six options: amounts increase from 0, costs decrease."""
    items = []
    for _ in range(draw(st.integers(1, 6))):
        amounts = [0, *sorted(draw(st.sets(st.integers(1, 50), max_size=5)))]
        costs = sorted(
            draw(st.sets(st.integers(-100, 1000), min_size=len(amounts), max_size=len(amounts))), reverse=True
        )
        items.append([(amount, cost / 7) for amount, cost in zip(amounts, costs, strict=True)])
    return items


@settings(max_examples=200, deadline=None)
@given(monotone_items(), st.floats(0, 1.2))
def test_price_and_bound_equal_those_of_the_linear_program(
    items: list[list[tuple[int, float]]], share: float
) -> None:
    item_X = np.array([number for number, item in enumerate(items) for _ in item])
    amount_X, cost_X = (np.array([option[part] for item in items for option in item]) for part in (0, 1))
    limit = int(share * sum(item[-1][0] for item in items))
    price, chosen_N = hull_price(cost_X, item_X, amount_X, limit)
    one_each = csr_array((np.ones(len(item_X)), (item_X, np.arange(len(item_X)))))
    reference = linprog(
        cost_X, amount_X[None].astype(float), [limit], one_each, np.ones(len(items)), method="highs"
    )
    least = sum(
        min(cost_X[item_X == number] + price * amount_X[item_X == number]) for number in range(len(items))
    )
    assert least - price * limit == pytest.approx(reference.fun, abs=1e-6)
    assert price >= 0 and item_X[chosen_N].tolist() == list(range(len(items)))
    assert amount_X[chosen_N].sum() <= limit and cost_X[chosen_N].sum() >= reference.fun - 1e-6
