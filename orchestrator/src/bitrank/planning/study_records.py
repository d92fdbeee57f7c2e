"""Records of a study in its results folder. A command adds its arms to those of earlier commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitrank_data import write_atomically
from filelock import FileLock

from bitrank.planning.learning_rates import Cell
from bitrank.planning.planner_studies import PlannerStudy

Row = dict[str, Any]


def record_planning(
    path: Path, references: Sequence[str], plans: Sequence[Row], left_out: Sequence[Row]
) -> None:
    """Write the costs of the arms of a study, and the arms without a plan, into ``path``.

    An arm of an earlier command keeps its rows until a command plans it again for the same task.
    """
    with _locked(path):
        write_atomically(
            path, json.dumps(_with_earlier(_read(path, {}), references, plans, left_out), indent=1)
        )


def _with_earlier(
    earlier: dict[str, Any], references: Sequence[str], plans: Sequence[Row], left_out: Sequence[Row]
) -> dict[str, Any]:
    whole = _by_cell(earlier.get("plans", []), plans)
    planned = {(row["config"], row["task"]) for row in whole}
    absent = {
        (row["arm"], row["budget"], row["task"]): row for row in [*earlier.get("left_out", []), *left_out]
    }
    return {
        "references": list(dict.fromkeys([*earlier.get("references", []), *references])),
        "plans": whole,
        "left_out": [
            row
            for (arm, budget, task), row in absent.items()
            if (config_name(arm, budget), task) not in planned
        ],
    }


def config_name(arm: str, budget: str) -> str:
    """The config of ``arm`` at ``budget``; without a budget the arm's own name."""
    return f"{arm}-{budget.lstrip('=')}" if budget else arm


def without_rate(reasons: Mapping[Cell, str], study: PlannerStudy) -> list[Row]:
    """The rows ``left_out`` of the arms of ``study`` without a learning rate, whose ``reasons`` are known."""
    named = {config_name(arm, budget): (arm, budget) for arm in study.arms for budget in study.budgets}
    rows = []
    for (config, task), reason in reasons.items():
        arm, budget = named.get(config, (config, ""))
        rows.append({"arm": arm, "budget": budget, "task": task, "reason": reason})
    return rows


def record_rates(path: Path, rows: Sequence[Row]) -> None:
    """Write the losses of the learning rates of each arm into ``path``, as :func:`record_planning` does."""
    with _locked(path):
        write_atomically(path, json.dumps(_by_cell(_read(path, []), rows), indent=1))


def _locked(path: Path) -> FileLock:
    """Two commands may add their arms to one file at the same time."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def _by_cell(earlier: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The rows of ``earlier`` and ``new`` by config and task; a new row replaces an earlier one."""
    return list({(row["config"], row["task"]): row for row in [*earlier, *new]}.values())


def _read(path: Path, nothing: Any) -> Any:
    """The records in ``path``; ``nothing`` if there are none, or those of a version with another form."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return data if isinstance(data, type(nothing)) else nothing
    except (OSError, ValueError):
        return nothing
