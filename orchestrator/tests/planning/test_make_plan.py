"""Plans on request: pins are part of the problem whose costs are calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from bitrank.errors import UserError
from bitrank.planning import make_plan as module
from bitrank.planning.costs import Choices
from bitrank.planning.make_plan import Pin, PlanRequest, make_plan, match_pins
from bitrank.sensitivity.tables import Tables
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec
from bitrank_planner import Problem

CHOICES = Choices(ranks=(2, 4, 8))


def test_pins_are_in_every_problem_that_is_calibrated(
    spec: RunSpec, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated: list[Problem] = []

    def calibrate(problems: Sequence[Problem], *_: Any) -> tuple[Problem, float]:
        calibrated.extend(problems)
        return problems[0], 0.0

    monkeypatch.setattr(module, "calibrate_costs", calibrate)
    name = next(m.name for m in tables.matrices if m.layer == 0)
    request = PlanRequest("9bits", choices=CHOICES, pins=[(name, ("int6-g64-dq", 4))])
    result = make_plan(spec, request)
    assert len(calibrated) == 2
    for problem in (*calibrated, result.problem):
        assert {(o.format, o.rank) for o in problem.item(name).options} == {("int6-g64-dq", 4)}
    assert (result.plan.precision[name], result.plan.ranks[name]) == ("int6-g64-dq", 4)


def test_both_costs_are_calibrated_and_differ(
    spec: RunSpec, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Problem] = []
    monkeypatch.setattr(
        module, "calibrate_costs", lambda problems, *_: seen.extend(problems) or (problems[0], 0.0)
    )
    make_plan(spec, PlanRequest("9bits", choices=CHOICES))
    by_output, by_fisher = seen
    name = next(m.name for m in tables.matrices if m.layer == 0)
    assert [o.nbytes for o in by_output.item(name).options] == [
        o.nbytes for o in by_fisher.item(name).options
    ]
    assert [o.cost for o in by_output.item(name).options] != [o.cost for o in by_fisher.item(name).options]


def test_of_two_pins_for_a_matrix_the_later_one_replaces_what_it_gives() -> None:
    names = ["layers.0.q_proj", "layers.1.q_proj", "layers.0.up_proj"]
    pins: list[tuple[str, Pin]] = [
        ("layers.0", ("int8", None)),
        ("q_proj", (None, 16)),
        ("layers.0.q", ("bf16", None)),
    ]
    assert match_pins(pins, names) == {
        "layers.0.q_proj": ("bf16", 16),
        "layers.0.up_proj": ("int8", None),
        "layers.1.q_proj": (None, 16),
    }


@pytest.mark.parametrize("planner", ["uniform", "hand-made", "modelopt-like"])
def test_costs_of_learning_are_refused_by_planners_without_predicted_losses(planner: str) -> None:
    spec = make_spec(PROFILES["smoke"], "B-FP", "toy_sentences")
    with pytest.raises(UserError, match=f"the planner '{planner}' does not minimise predicted loss"):
        make_plan(spec, PlanRequest("=B-Q4", planner, learning="probe"))
