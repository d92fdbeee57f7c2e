"""Plans for several budgets from one measurement: the curve of predicted loss against bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitrank_planner import Plan, PlanError
from bitrank_trainer import pin_threads

from bitrank.errors import UserError
from bitrank.planning.bits_of_budgets import stated_in_bits
from bitrank.planning.budget import NOTHING_TRAINS, Sizes, parse_budget, sizes_of
from bitrank.planning.from_config import plan_from_config, sizes_from_config
from bitrank.planning.make_plan import PlanRequest, check_request, plan_from_tables
from bitrank.sensitivity.measure import measure, measured_formats
from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class CurvePoint:
    """The plan for one budget, or the reason why there is none.

    ``budget`` is the text of the request and ``nbytes`` its bytes. ``note`` compares the plan with that of a
    smaller budget; it is empty for a plan that is predicted to be better.
    """

    budget: str
    nbytes: int
    plan: Plan | None = None
    error: str = ""
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Points by increasing budget, the sizes of their model, and the measured loss in 16 bits in nats.

    ``base_loss`` is None for a plan from a ``config.json``.
    """

    points: list[CurvePoint]
    sizes: Sizes
    base_loss: float | None

    @property
    def missing(self) -> list[CurvePoint]:
        """Points without a plan."""
        return [point for point in self.points if point.plan is None]


def measured_curve(
    spec: RunSpec,
    request: PlanRequest,
    budgets: Sequence[str],
    on_progress: Callable[[str], None] = lambda _: None,
) -> Curve:
    """Measure the model once and make the plan of ``request`` for each of ``budgets``.

    A budget without a plan is a point with an error; the others are planned. Raises :class:`UserError` for an
    invalid request, and for a text that denotes no budget, before anything is measured.
    """
    check_request(request)
    pin_threads(spec.threads)
    sizes = sizes_of(spec)
    nbytes = {text: parse_budget(text, sizes) for text in budgets}
    tables = measure(spec, on_progress, measured_formats(request.choices.formats, spec.quantizer))

    def solve(budget: str) -> Plan:
        at_budget = replace(request, budget=budget)
        with stated_in_bits(budget, lambda: sizes.parameters):
            return plan_from_tables(spec, at_budget, sizes, tables, on_progress).plan

    return Curve(trace(nbytes, solve), sizes, tables.base)


def outlined_curve(spec: RunSpec, request: PlanRequest, budgets: Sequence[str]) -> Curve:
    """Make the plan of ``request`` for each of ``budgets`` from the ``config.json`` at ``spec.model``."""
    sizes = sizes_from_config(spec)
    nbytes = {text: parse_budget(text, sizes) for text in budgets}

    def solve(budget: str) -> Plan:
        with stated_in_bits(budget, lambda: sizes.parameters):
            plan = plan_from_config(spec, replace(request, budget=budget))[0]
        if not plan.ranks:
            raise UserError(NOTHING_TRAINS)
        return plan

    return Curve(trace(nbytes, solve), sizes, None)


def trace(nbytes: dict[str, int], solve: Callable[[str], Plan]) -> list[CurvePoint]:
    """Return the point of each budget (text → bytes), smallest budget first; ``solve`` plans for a text."""
    points: list[CurvePoint] = []
    for budget in sorted(nbytes, key=nbytes.__getitem__):
        try:
            plan = solve(budget)
        except (PlanError, UserError) as error:
            points.append(CurvePoint(budget, nbytes[budget], error=str(error)))
        else:
            points.append(CurvePoint(budget, nbytes[budget], plan, note=_compared(plan, points)))
    return points


def _compared(plan: Plan, smaller: Sequence[CurvePoint]) -> str:
    """The note on ``plan``: it equals the plan of a smaller budget, or is predicted to be no better."""
    for point in smaller:
        if point.plan is not None and (point.plan.precision, point.plan.ranks) == (
            plan.precision,
            plan.ranks,
        ):
            return f"the plan of {point.budget}: no better one uses the bytes between the budgets"
    # Costs are calibrated at each budget, so a larger budget can have the larger prediction.
    better = [point for point in smaller if point.plan is not None and point.plan.cost <= plan.cost]
    if better:
        least = min(better, key=lambda point: point.plan.cost if point.plan else 0.0)
        return f"the smaller plan of {least.budget} is predicted to add no more loss: prefer it"
    return ""


def curve_data(curve: Curve, files: dict[str, str]) -> list[dict[str, Any]]:
    """The points of ``curve`` as plain data; ``files`` maps a budget to the name of its plan file."""
    rows = []
    for point in curve.points:
        row: dict[str, Any] = {"budget": point.budget, "budget_bytes": point.nbytes}
        if (plan := point.plan) is None:
            row["error"] = point.error
        else:
            row |= {
                "bytes": plan.nbytes,
                "bits_per_parameter": 8 * plan.nbytes / curve.sizes.parameters,
                "predicted_added_loss": plan.cost,
                "proven_lower_bound": plan.bound,
                "trainable": plan.trainable,
                "note": point.note,
                "plan": files.get(point.budget),
            }
        rows.append(row)
    return rows
