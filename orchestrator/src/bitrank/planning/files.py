"""A plan on disk: what a run needs to follow it, and what its maker promised of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitrank_data import write_atomically
from bitrank_planner import Plan

from bitrank.errors import UserError
from bitrank.planning.sizes import Sizes


def plan_data(plan: Plan, sizes: Sizes, budget: int, init: str) -> dict[str, Any]:
    """``plan`` as plain data. ``shapes`` let a run refuse a plan for another model; ``init`` is how its adapters are meant to start.

    ``proven_lower_bound`` is an added loss that no plan of the kind is predicted to fall below, ``proven_gap`` what a better one could
    save at most, relative; both None where the planner proves nothing.
    """
    return {
        "planner": plan.solver,
        "budget": budget,
        "bytes": plan.nbytes,
        "predicted_added_loss": plan.cost,
        "proven_lower_bound": plan.bound,
        "proven_gap": plan.gap,
        "trainable": plan.trainable,
        "init": init,
        "precision": plan.precision,
        "ranks": plan.ranks,
        "shapes": {name: list(sizes.matrices[name].shape) for name in plan.precision},
    }


def save_plan(data: dict[str, Any], path: Path) -> None:
    """Write ``data`` to ``path``, whole. Raises :class:`UserError` when that cannot be done."""
    try:
        write_atomically(path, json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the plan to {path}: {error.strerror}; give another path with --save") from error
