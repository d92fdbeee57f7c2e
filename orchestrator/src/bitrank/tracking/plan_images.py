"""Images of bits and ranks of a finished run, for the MLflow UI."""

from __future__ import annotations

import json
from pathlib import Path


def plan_images(folder: Path, name: str) -> dict[str, bytes]:
    """Maps of the complete run in ``folder`` (file name → PNG); none if all matrices have equal values."""
    formats, ranks = formats_and_ranks(folder)
    if len(set(formats.values())) < 2 and len(set(ranks.values())) < 2:
        return {}
    from bitrank_analysis.figures import run_maps  # imported here: takes seconds, and most runs need no maps

    return run_maps(name, formats, ranks)


def formats_and_ranks(folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Format of every matrix of the run in ``folder``, and final rank of each in a layer or with an adapter.

    Runs record the ranks of adapters alone; a matrix of a layer without an adapter has rank 0 here.
    """
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    adapters = json.loads((folder / "ranks.json").read_text(encoding="utf-8"))["final"]
    layers = {matrix["name"]: 0 for matrix in plan["matrices"] if matrix["layer"] is not None}
    return plan["precision"], {**layers, **adapters}
