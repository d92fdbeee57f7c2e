"""A plan on disk: what a run needs to follow it, and what its maker promised of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank_data import write_atomically

from bitrank.errors import UserError

if TYPE_CHECKING:  # plans are read without loading torch
    from bitrank_planner import Plan
    from bitrank_quant import WeightMatrix

_EXPECTED = 'expected JSON like {"precision": {"module": "nf4"}, "ranks": {"module": 8}}'


def plan_data(plan: Plan, matrices: Mapping[str, WeightMatrix], budget: int, init: str) -> dict[str, Any]:
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
        "shapes": {name: list(matrices[name].shape) for name in plan.precision},
    }


def save_plan(data: dict[str, Any], path: Path) -> None:
    """Write ``data`` to ``path``, whole. Raises :class:`UserError` when that cannot be done."""
    try:
        write_atomically(path, json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write the plan to {path}: {error.strerror}; give another path with --save"
        ) from error


def read_plan(path: Path) -> dict[str, Any]:
    """The plan file at ``path``: ``precision`` and ``ranks`` by module, and what else its maker wrote (see :mod:`bitrank.spec.plan_file`).

    Raises :class:`UserError` when it cannot be read or is no plan.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the plan {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no plan: {_EXPECTED}; got {type(error).__name__}: {error}") from error
    return check_plan_data(data, str(path))


def check_plan_data(plan: Any, source: str) -> dict[str, Any]:
    """``plan`` as a plan's data with every optional part. Raises :class:`UserError`, which names ``source``, when it is none."""
    try:
        data = dict(plan)
        bits, ranks = dict(data["precision"]), dict(data["ranks"])
        shapes, adaptive = dict(data.get("shapes", {})), dict(data.get("adaptive", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source} is no plan: {_EXPECTED}; got {type(error).__name__}: {error}") from error
    if not all(isinstance(fmt, str) for fmt in bits.values()) or not all(
        type(rank) is int for rank in ranks.values()
    ):
        raise UserError(f"{source} is no plan: {_EXPECTED}; formats must be text and ranks whole numbers")
    return {**data, "precision": bits, "ranks": ranks, "shapes": shapes, "adaptive": adaptive}
