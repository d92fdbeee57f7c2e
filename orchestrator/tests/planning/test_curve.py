"""Curves of predicted loss against bytes: one plan for each budget, with notes and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from bitrank.errors import UserError
from bitrank.planning import curve as module
from bitrank.planning import make_plan as make_plan_module
from bitrank.planning.costs import Choices
from bitrank.planning.curve import measured_curve, trace
from bitrank.planning.make_plan import PlanRequest, make_plan
from bitrank.sensitivity.tables import Tables
from bitrank.spec.run_spec import RunSpec
from bitrank_planner import Infeasible, Plan, Problem

CHOICES = Choices(ranks=(2, 4, 8))


def plan_of(fmt: str, cost: float) -> Plan:
    return Plan("exact", {"a": fmt}, {"a": 2}, 10, cost, 0, (0,))


def test_points_are_in_order_of_bytes_and_name_equal_and_worse_plans() -> None:
    plans = {
        "large": plan_of("int8", 0.5),
        "small": plan_of("int4-g64", 1.0),
        "between": plan_of("int4-g64", 1.0),
        "noisy": plan_of("int6-g64", 1.2),
    }
    points = trace({"large": 400, "noisy": 300, "small": 100, "between": 200}, plans.__getitem__)
    assert [point.budget for point in points] == ["small", "between", "noisy", "large"]
    assert points[0].note == "" and points[3].note == ""
    assert points[1].note.startswith("the plan of small:")
    assert points[2].note == "the smaller plan of small is predicted to add no more loss: prefer it"


def test_a_budget_without_a_plan_does_not_stop_the_others() -> None:
    def solve(budget: str) -> Plan:
        if budget == "tiny":
            raise Infeasible("too small: give 100 bytes", 100)
        return plan_of("int8", 0.5)

    points = trace({"fine": 200, "tiny": 1}, solve)
    assert (points[0].plan, points[0].error) == (None, "too small: give 100 bytes")
    assert points[1].plan == plan_of("int8", 0.5)


def test_every_point_is_the_plan_of_its_budget_and_tables_are_measured_once(
    spec: RunSpec, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uncalibrated(problems: Sequence[Problem], *_: Any) -> tuple[Problem, float]:
        return problems[0], 0.0

    measured: list[str] = []

    def measure_once(*_: Any) -> Tables:
        measured.append("measured")
        return tables

    monkeypatch.setattr(make_plan_module, "calibrate_costs", uncalibrated)
    monkeypatch.setattr(module, "measure", measure_once)
    budgets = ["12bits", "9bits", "0.1bits", "=B-FP"]
    curve = measured_curve(spec, PlanRequest("9bits", choices=CHOICES), budgets)
    assert measured == ["measured"] and curve.base_loss == tables.base
    assert [point.budget for point in curve.missing] == ["0.1bits"]
    assert "the smallest plan takes" in curve.missing[0].error
    found = [point for point in curve.points if point.plan is not None]
    for point in found:
        alone = make_plan(spec, PlanRequest(point.budget, choices=CHOICES))
        assert point.plan == alone.plan and point.nbytes == alone.problem.budget
    costs = [point.plan.cost for point in found if point.plan is not None]
    assert costs == sorted(costs, reverse=True)  # equal costs and more bytes: never more loss


def test_an_invalid_request_is_an_error_before_anything_is_measured(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="expected a budget such as"):
        measured_curve(spec, PlanRequest("9bits"), ["9bits", "many"])
    with pytest.raises(UserError, match="unknown planner 'exat'"):
        measured_curve(spec, PlanRequest("9bits", "exat"), ["9bits"])
    with pytest.raises(UserError, match="the planner 'uniform' does not minimise predicted loss"):
        measured_curve(spec, PlanRequest("9bits", "uniform", learning="probe"), ["9bits"])
