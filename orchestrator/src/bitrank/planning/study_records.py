"""Records of a study in its results folder. A command adds its arms to those of earlier commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitrank_data import write_atomically

Row = dict[str, Any]


def record_planning(
    path: Path, references: Sequence[str], plans: Sequence[Row], left_out: Sequence[Row]
) -> None:
    """Write the costs of the arms of a study, and the arms without a plan, into ``path``.

    An arm of an earlier command keeps its rows until a command plans it again for the same task.
    """
    earlier = _read(path, {})
    whole = _by_cell(earlier.get("plans", []), plans)
    planned = {(row["config"], row["task"]) for row in whole}
    absent = {
        (row["arm"], row["budget"], row["task"]): row for row in [*earlier.get("left_out", []), *left_out]
    }
    data = {
        "references": list(dict.fromkeys([*earlier.get("references", []), *references])),
        "plans": whole,
        "left_out": [
            row
            for (arm, budget, task), row in absent.items()
            if (f"{arm}-{budget.lstrip('=')}", task) not in planned
        ],
    }
    write_atomically(path, json.dumps(data, indent=1))


def record_rates(path: Path, rows: Sequence[Row]) -> None:
    """Write the losses of the learning rates of each arm into ``path``, as :func:`record_planning` does."""
    write_atomically(path, json.dumps(_by_cell(_read(path, []), rows), indent=1))


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
