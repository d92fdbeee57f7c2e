"""The arm of a run: its config's rules, or the plan that was made for it before this process started."""

from __future__ import annotations

from pathlib import Path

from bitrank.errors import UserError
from bitrank.process.run_folder import REQUESTED_PLAN, has_requested_plan
from bitrank.run.record import Record
from bitrank.spec.configs import Config, PlannedArm, config_of_plan, find_arm
from bitrank.spec.plan_file import read_plan
from bitrank.spec.run_spec import RunSpec


def config_of_run(spec: RunSpec, folder: Path, record: Record) -> Config:
    """Return the rules for formats and ranks of the run in ``folder``.

    The plan of a planned arm is read from ``folder``, and ``record`` gets its predictions and cost. Raises
    :class:`UserError` if the plan is missing or damaged.
    """
    arm = find_arm(spec.config, spec.plan, spec.tuned)
    if not isinstance(arm, PlannedArm):
        return arm
    path = folder / REQUESTED_PLAN
    if not has_requested_plan(folder):
        raise UserError(f"{path} is missing or damaged; repeat the same command to make the plan again")
    plan = read_plan(path)
    record.requested_plan(plan)
    return config_of_plan(plan, str(path))
