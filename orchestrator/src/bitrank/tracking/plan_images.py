"""The plan of a finished run as images: what MLflow shows of bits and ranks without opening a JSON file."""

from __future__ import annotations

import json
from pathlib import Path


def plan_images(folder: Path, name: str) -> dict[str, bytes]:
    """File name → PNG for the maps of the complete run in ``folder``; none where every matrix has the same."""
    formats = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["precision"]
    ranks = json.loads((folder / "ranks.json").read_text(encoding="utf-8"))["final"]
    if len(set(formats.values())) < 2 and len(set(ranks.values())) < 2:
        return {}
    from bitrank_analysis.figures import run_maps  # seconds to import, and most runs need none

    return run_maps(name, formats, ranks)
