"""Make the plan of a planned arm, once for each request, model and task.

``python -m bitrank.planning FOLDER`` does this in a process of its own before the training process starts, so
that the run's peak memory does not include measuring. The plan is cached: runs with other seeds, and an
interrupted run that continues on this machine, use the same plan. Two processes that need one plan make it
once; the other one waits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitrank_data import build_once
from bitrank_trainer import peak_memory_mib

from bitrank.models.locate import folder_of
from bitrank.planning.make_plan import PlanRequest, PlanResult, make_plan
from bitrank.planning.restrictions import choices_for
from bitrank.spec.plan_file import plan_data, read_plan, save_plan
from bitrank.spec.plan_request import PLAN, plan_place, planning_spec
from bitrank.spec.run_spec import RunSpec


def plan_for(
    spec: RunSpec, on_progress: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, Any], bool]:
    """Return the data of the plan for the planned arm of ``spec``, and whether it was made now.

    The data is that of ``bitrank plan --save``; ``planning_seconds`` are those of the time when it was made.
    Raises :class:`UserError` or a package's error as :func:`make_plan` does.
    """
    folder_of(spec.model_source)  # downloads a hub model, whose commit is part of the key
    plan_spec, is_new = planning_spec(spec), False

    def build(folder: Path) -> None:
        nonlocal is_new
        is_new = True
        result = make_plan(plan_spec, request_from_spec(plan_spec), on_progress)
        save_plan(_data_of(result, plan_spec), folder / PLAN)

    place = build_once(plan_place(spec), build)
    return read_plan(place / PLAN), is_new


def request_from_spec(spec: RunSpec) -> PlanRequest:
    """Return the plan request of the planned arm of ``spec``, whose data is plain."""
    data = spec.plan_request
    assert data is not None, "only a planned arm has a plan request"
    return PlanRequest(
        budget=data["budget"],
        planner=data["planner"],
        choices=choices_for(spec.init, data["formats"], data["ranks"] or None),
        max_trainable=data["max_trainable"],
        pins=[(part, (choice[0], choice[1])) for part, choice in data["pins"].items()],
        evaluations=data["evaluations"],
        steps=data["steps"],
        seconds=data["seconds"],
        learning=data["learning"],
    )


def _data_of(result: PlanResult, spec: RunSpec) -> dict[str, Any]:
    matrices, budget = result.sizes.matrices, result.problem.budget
    data = plan_data(result.plan, matrices, budget, spec.init, spec.quantizer)
    data["planning_seconds"] = {"measuring": result.tables.seconds, "choosing": result.choosing}
    # Measured tables may come from the cache: then this process did not use the memory that measuring takes.
    data["planning_peak_mib"] = max(result.tables.peak_mib, peak_memory_mib())
    return data
