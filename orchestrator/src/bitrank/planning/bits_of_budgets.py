"""The size of the smallest plan in the unit of its budget, for an error about a budget in bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bitrank_planner import Infeasible

from bitrank.planning.budget import sizes_of
from bitrank.planning.make_plan import PlanRequest, PlanResult, make_plan
from bitrank.spec.run_spec import RunSpec


@contextmanager
def stated_in_bits(budget: str, parameters: Callable[[], int]) -> Iterator[None]:
    """Add bits per parameter to an :class:`Infeasible` raised within, if the text ``budget`` gives bits.

    ``parameters`` counts those of the base model.
    """
    try:
        yield
    except Infeasible as error:
        if "bit" not in budget:
            raise
        given = f"Give {error.smallest:,} or more"
        bits = f"{sufficient_bits(error.smallest, parameters()):.2f} bits per parameter"
        raise Infeasible(str(error).replace(given, f"{given} ({bits})"), error.smallest) from error


def measured_plan(spec: RunSpec, request: PlanRequest, on_progress: Callable[[str], None]) -> PlanResult:
    """The plan of ``request``, as :func:`~bitrank.planning.make_plan.make_plan` makes it, with its errors."""
    with stated_in_bits(request.budget, lambda: sizes_of(spec).parameters):
        return make_plan(spec, request, on_progress)


def sufficient_bits(nbytes: int, parameters: int) -> float:
    """The fewest hundredths of a bit per parameter that give ``nbytes`` or more."""
    hundredths = math.ceil(800 * nbytes / parameters)
    # A budget is rounded down to bytes, and a decimal number may be below its digits.
    while int(hundredths / 100 * parameters / 8) < nbytes:
        hundredths += 1
    return hundredths / 100
