"""Arithmetic of ``benchmarks/rank_learning.py``; no training."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def rank_learning() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module("rank_learning")


@pytest.mark.parametrize(("plans", "p"), (("abc", "0.33"), ("abcd", "0.08"), ("abcde", "0.02")))
def test_a_perfect_order_of_few_plans_has_the_share_of_two_orders_as_p(
    rank_learning: ModuleType, plans: str, p: str
) -> None:
    """Two of n! orders have |ρ| = 1: 2/6, 2/24, 2/120."""
    values = {plan: float(place) for place, plan in enumerate(plans)}
    assert rank_learning.correlation(plans, values, values) == f"ρ = 1.00 (p = {p})"
