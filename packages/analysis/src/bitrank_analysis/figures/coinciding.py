"""Curves that coincide: drawn once, under a label that names all their arms."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bitrank_analysis import phrasing

_DIGITS = 9  # a difference beyond this is rounding


def labels_of(curves: pd.DataFrame, x: str, y: str, configs: Sequence[str]) -> dict[str, str]:
    """The first arm of each group of equal curves → the group's label, in the order of ``configs``."""
    same: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name in configs:
        of_arm = curves[curves["config"] == name].sort_values(x)
        if len(of_arm):
            points = tuple(zip(of_arm[x], of_arm[y].round(_DIGITS), strict=True))
            same.setdefault(points, []).append(name)
    return {names[0]: phrasing.listed(names) for names in same.values()}


def drawn_once(curves: pd.DataFrame, labels: dict[str, str]) -> pd.DataFrame:
    """The curves of the arms in ``labels``, with the group's label as their config."""
    kept = curves[curves["config"].isin(labels)]
    return kept.assign(config=kept["config"].map(labels))
