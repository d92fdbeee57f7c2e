"""Predicted loss of plans against their bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.figures.theme import COLUMN, STYLE, Figure


def budget_curve(points: Sequence[Mapping[str, Any]], label: str) -> Figure:
    """The predicted added loss of one plan for each budget, in nats, against the plan's MiB.

    ``points`` have the keys ``budget`` (text), ``bytes`` and ``predicted_added_loss``; ``label`` names the
    model and the planner. Raises :class:`AnalysisError` without a point.
    """
    if not points:
        raise AnalysisError("expected the plan of at least one budget, got none; give a larger budget")
    frame = pd.DataFrame(
        {
            "budget": [point["budget"] for point in points],
            "mib": [point["bytes"] / 2**20 for point in points],
            "loss": [point["predicted_added_loss"] for point in points],
        }
    ).sort_values("mib")
    x = alt.X(
        "mib:Q",
        title="Model and adapters, MiB",
        axis=alt.Axis(tickCount=5, labelOverlap=True),
        scale=alt.Scale(zero=False, padding=26),
    )
    y = alt.Y("loss:Q", title="Predicted added loss, nats", scale=alt.Scale(padding=12))
    colour = STYLE["Plan-Q4"][0]
    base = alt.Chart(frame).encode(x=x, y=y)
    chart = alt.layer(
        base.mark_line(strokeWidth=1.2, style="guide"),
        base.mark_point(filled=True, size=50, color=colour, opacity=1),
        base.mark_text(dy=-11).encode(text="budget:N"),
    ).properties(width=COLUMN, height=210)
    note = f"{label}: one plan for each budget, labelled with the budget; predicted before training."
    return Figure("curve", curve_title(frame), chart, note)


def curve_title(frame: pd.DataFrame) -> str:
    """Loss (nats) in the fewest and the most ``mib`` of ``frame``, which is sorted by them."""
    first, last = frame.iloc[0], frame.iloc[-1]
    if len(frame) == 1:
        return f"The plan in {first['mib']:.3g} MiB is predicted to add {first['loss']:.3g} nats"
    return (
        f"Predicted added loss is {first['loss']:.3g} nats in {first['mib']:.3g} MiB and "
        f"{last['loss']:.3g} in {last['mib']:.3g} MiB"
    )
