"""Curves of predicted loss against bytes: the files ``curve.json`` of ``bitrank plan --budgets --save``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank_analysis.errors import AnalysisError

CURVE_FILE = "curve.json"


@dataclass(frozen=True)
class CurvePoint:
    """The plan of one budget: its ``mib`` (model and adapters) and predicted ``added_loss`` in nats."""

    budget: str
    mib: float
    added_loss: float


@dataclass(frozen=True)
class BudgetCurve:
    """Plans of one planner for several budgets, smallest first.

    ``name`` is the folder of the file. ``model`` is the model as the planner named it: a name or a path.
    """

    name: str
    model: str
    task: str
    planner: str
    points: tuple[CurvePoint, ...]

    def is_of(self, task: str, models: Sequence[str]) -> bool:
        """Whether the curve predicts runs of ``task`` with one of ``models``; folders of paths are ignored.

        Folders differ between machines, and evidence bundles cut them.
        """
        return self.task == task and Path(self.model).name in {Path(model).name for model in models}


def read_curves(folder: Path) -> list[BudgetCurve]:
    """Every curve in ``folder`` and the folders in it, in the order of their paths.

    Curves without a task (planned from a ``config.json`` alone) and without any plan are left out. Raises
    :class:`AnalysisError` for a file that is not a curve.
    """
    found = [_curve(path) for path in sorted(folder.rglob(CURVE_FILE)) if path.is_file()]
    return [curve for curve in found if curve is not None]


def _curve(path: Path) -> BudgetCurve | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        points = [_point(row) for row in data["points"] if "bytes" in row]
        task, model, planner = data["task"], str(data["model"]), str(data["planner"])
        if data["sensitivities"] != "measured" or not points:
            return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnalysisError(
            f"{path} is not a curve of `bitrank plan --budgets`: {type(error).__name__}: {error}; plan it "
            "again, or remove it"
        ) from error
    return BudgetCurve(
        path.parent.name, model, str(task), planner, tuple(sorted(points, key=lambda point: point.mib))
    )


def _point(row: dict[str, Any]) -> CurvePoint:
    point = CurvePoint(str(row["budget"]), row["bytes"] / 2**20, float(row["predicted_added_loss"]))
    if not (math.isfinite(point.mib) and math.isfinite(point.added_loss)):
        raise ValueError(f"the point of {point.budget} is not finite")
    return point
