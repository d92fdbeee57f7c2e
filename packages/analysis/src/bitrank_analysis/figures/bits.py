"""Bits of each matrix, one panel per distinct precision plan."""

from __future__ import annotations

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.ranks import heat_map
from bitrank_analysis.figures.theme import Figure


def bits_map(evidence: Evidence) -> Figure:
    """Nominal bits of each weight matrix, layers by modules; arms with equal plans share a panel.

    Raises :class:`AnalysisError` if no plan has matrices in numbered layers.
    """
    inside = evidence.plans.dropna(subset=["layer"]).drop_duplicates(["config", "matrix"])
    if inside.empty:
        raise AnalysisError(
            "expected a precision plan of matrices in numbered layers, got none; is plan.json among the "
            "run's artifacts?"
        )
    panels = _panels(inside, evidence.configs)
    cells = pd.concat(
        [inside[inside["config"] == names[0]].assign(config=label) for label, names in panels.items()]
    )
    return Figure(
        "bits-map", _title(evidence), heat_map(cells, "bits", list(panels)), _note(evidence), wide=True
    )


def _panels(inside: pd.DataFrame, configs: list[str]) -> dict[str, list[str]]:
    """Panel label → arms with that plan."""
    same: dict[tuple, list[str]] = {}
    for name in configs:
        plan = inside[inside["config"] == name].sort_values("matrix")
        if not plan.empty:
            same.setdefault(tuple(zip(plan["matrix"], plan["format"], strict=True)), []).append(name)
    return {", ".join(names): names for names in same.values()}


def _title(evidence: Evidence) -> str:
    stored = evidence.arms[["config", "bits"]].dropna().sort_values("bits")
    if stored.empty:
        return "How many bits the arms store in all was not measured"
    low, high = stored.iloc[0], stored.iloc[-1]
    if high["bits"] - low["bits"] < 0.05:
        return f"Every arm stores {low['bits']:.1f} bits per base parameter"
    return (
        f"Stored bits per base parameter run from {low['bits']:.1f} ({low['config']}) to {high['bits']:.1f} "
        f"({high['config']})"
    )


def _note(evidence: Evidence) -> str:
    outside = evidence.plans[evidence.plans["layer"].isna()]
    rest = (
        f"; outside the layers: {phrasing.listed(sorted(outside['format'].unique()))}" if len(outside) else ""
    )
    return f"{evidence.task}: bits of one stored weight, scales not counted, in each matrix{rest}."
