"""Images of bits and ranks of a finished run, for the MLflow UI."""

from __future__ import annotations

import json
from pathlib import Path


def plan_images(folder: Path, name: str) -> dict[str, bytes]:
    """Maps of the complete run in ``folder`` (file name → PNG); none if all matrices have equal values."""
    formats = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["precision"]
    ranks = json.loads((folder / "ranks.json").read_text(encoding="utf-8"))["final"]
    if len(set(formats.values())) < 2 and len(set(ranks.values())) < 2:
        return {}
    from bitrank_analysis.figures import run_maps  # imported here: takes seconds, and most runs need no maps

    return run_maps(name, formats, ranks)
