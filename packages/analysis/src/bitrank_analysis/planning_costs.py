"""What `bitrank study` records about the arms of a study, in one file for each part of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bitrank_analysis.errors import AnalysisError

_COSTS = [
    "config",
    "task",
    "budget",
    "planned_bytes",
    "measuring_s",
    "choosing_s",
    "rates_s",
    "predicted_nats",
    "learning_rate",
]
_KEYS = ("references", "plans", "left_out")


@dataclass(frozen=True)
class Planning:
    """The arms of a study.

    ``references`` are configs, one per budget, with which the arms of that budget are compared. ``costs`` has
    a row per config and task: budget and planned bytes, seconds of planning (``measuring_s``, ``choosing_s``)
    and of the runs that chose the learning rate (``rates_s``), the predicted loss in nats, and the learning
    rate; NaN for what an arm at its own bytes does not have. ``left_out`` has the arms without a plan, with
    the reason.
    """

    references: list[str]
    costs: pd.DataFrame
    left_out: list[dict[str, str]]

    @property
    def rates(self) -> dict[tuple[str, str], float]:
        """Learning rate by config and task."""
        chosen = self.costs.dropna(subset=["learning_rate"])
        return {(row.config, row.task): float(row.learning_rate) for row in chosen.itertuples()}


def read_planning(files: Sequence[Path]) -> Planning:
    """Read the parts of a study; an arm that several parts have is that of the last one.

    Raises :class:`AnalysisError` for a file that is not one of `bitrank study`, and if two parts chose
    different learning rates for an arm.
    """
    parts = [_part(path) for path in files]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for path, part in zip(files, parts, strict=True):
        for row in part["plans"]:
            cell = (row["config"], row["task"])
            _check_rate(path, rows.get(cell, row), row)
            rows[cell] = row
    costs = pd.DataFrame(list(rows.values()), columns=_COSTS)
    figures = costs.columns.difference(["config", "task"])
    costs[figures] = costs[figures].astype(float)  # configs at their own bytes have gaps
    references = dict.fromkeys(name for part in parts for name in part["references"])
    left_out = {(row["arm"], row["budget"], row["task"]): row for part in parts for row in part["left_out"]}
    absent = [
        row
        for (arm, budget, task), row in left_out.items()
        if (f"{arm}-{budget.lstrip('=')}" if budget else arm, task) not in rows
    ]
    return Planning(list(references), costs, absent)


def _part(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path} cannot be read: {error}; give planning.json of a study") from None
    missing = [key for key in _KEYS if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if missing:
        raise AnalysisError(
            f"{path}: expected planning.json of `bitrank study` with the lists {', '.join(_KEYS)}; it has no "
            f"{missing[0]}; repeat the study, which trains nothing again"
        )
    return data


def _check_rate(path: Path, known: dict[str, Any], row: dict[str, Any]) -> None:
    first, second = known.get("learning_rate"), row.get("learning_rate")
    if first is not None and second is not None and not math.isclose(first, second, rel_tol=1e-6):
        raise AnalysisError(
            f"{path}: {row['config']} on {row['task']} is trained with the learning rate {second:g}, and "
            f"with {first:g} in another part; leave out one of them"
        )
