"""Ranks from data, within the numbers that a given rank plan has: EVA and GoRA.

An adapter of rank r on a matrix (out, in) has r · (out + in) numbers. Both functions return ranks whose
adapters have at most as many numbers as those of ``plan``, so they need no more bytes. A matrix without a
rank in ``plan`` gets none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.plans import RankPlan, positive_ranks

Shapes = Mapping[str, tuple[int, int]]
_HALVINGS = 60  # bisection steps for GoRA's budget: enough for the precision of a float


def ranks_by_variance(
    ratios: Mapping[str, Tensor], plan: RankPlan, shapes: Shapes, *, rho: float = 2.0
) -> RankPlan:
    """Ranks by explained variance (EVA, Paischer et al. 2024): the components with the largest shares.

    ``ratios`` maps each matrix to the shares (K,) of its principal components in the variance of its inputs,
    largest first. A matrix gets at most ``rho`` times its rank in ``plan``. The paper counts ranks; here each
    rank costs the numbers of its matrix, and a component that no longer fits is passed over. Raises
    :class:`AdapterError` if fewer components are known than a matrix has ranks.
    """
    plan = positive_ranks(plan)
    most = {}
    for name, rank in plan.items():
        known = len(ratios[name])
        if known < rank:
            raise AdapterError(
                f"{name!r} has rank {rank}, and {known} principal components of its inputs are known; give a "
                f"rank of {known} or less"
            )
        most[name] = min(round(rho * rank), known, *shapes[name])
    left = _numbers(plan, shapes)
    ranks = dict.fromkeys(plan, 0)
    found = [(float(ratio), name) for name in plan for ratio in ratios[name][: most[name]]]
    for _, name in sorted(found, key=lambda entry: -entry[0]):  # equal shares in the order of the plan
        if sum(shapes[name]) <= left:
            ranks[name] += 1
            left -= sum(shapes[name])
    return ranks


def ranks_by_importance(importance: Mapping[str, float], plan: RankPlan, shapes: Shapes) -> RankPlan:
    """Ranks by the importance of matrices (GoRA, He et al. 2025): mean |W ∘ ∂loss/∂W|.

    r = ⌊b · importance/Σ importance / √(out + in)⌋ with b = Σ r₀ √(out + in) for the ranks r₀ of ``plan``,
    but no less than r₀/2 and no more than 4 r₀ (the paper: 4 to 32 at rank 8). Since the square root makes
    wide matrices cheap, b is lowered as far as the numbers of ``plan`` require. Raises :class:`AdapterError`
    if no importance is positive.
    """
    plan = positive_ranks(plan)
    total = sum(importance[name] for name in plan)
    if not (total > 0 and math.isfinite(total)):
        raise AdapterError(
            f"the importances of matrices add up to {total}: expected a positive finite number; check the "
            "model and the calibration data"
        )
    widths = {name: math.sqrt(sum(shapes[name])) for name in plan}
    budget = sum(rank * widths[name] for name, rank in plan.items())

    def at(share: float) -> RankPlan:
        ranks = {}
        for name, rank in plan.items():
            wanted = math.floor(share * budget * importance[name] / total / widths[name])
            most = min(4 * rank, *shapes[name])
            ranks[name] = min(max(wanted, math.ceil(rank / 2)), most)
        return ranks

    limit = _numbers(plan, shapes)
    if _numbers(at(1.0), shapes) <= limit:
        return at(1.0)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _numbers(at(middle), shapes) <= limit else (low, middle)
    return at(low)


def _numbers(ranks: RankPlan, shapes: Shapes) -> int:
    return sum(rank * sum(shapes[name]) for name, rank in ranks.items())
