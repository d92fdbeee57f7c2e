"""Loss over training: smoothed training loss and recorded validation loss."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.coinciding import drawn_once, labels_of
from bitrank_analysis.figures.theme import COLUMN, Figure, colour, shape

_WINDOW = 5  # recorded points in the running mean


def loss_curves(evidence: Evidence) -> Figure:
    """Training loss as lines and validation loss as points.

    Lines are running means of the recorded points, averaged over seeds. Raises :class:`AnalysisError` without
    a recorded training loss.
    """
    means = (
        evidence.curves.groupby(["key", "config", "step"], as_index=False)["value"].mean().sort_values("step")
    )
    train, val = means[means["key"] == "train/loss"], means[means["key"] == "val/loss"]
    if train.empty:
        raise AnalysisError(
            "expected train/loss in the store, got none; were the runs stopped before their first recorded "
            "step?"
        )
    smooth = train.assign(
        value=train.groupby("config")["value"].transform(
            lambda loss: loss.rolling(_WINDOW, min_periods=1).mean()
        )
    )
    labels = labels_of(smooth, "step", "value", evidence.configs)
    hue = colour(list(labels), labels=labels)
    x = alt.X("step:Q", title="Optimizer step")
    y = alt.Y("value:Q", title="Loss, nats (lower is better)", scale=alt.Scale(zero=False))
    tips = ["config:N", "step:Q", alt.Tooltip("value:Q", format=".3f")]
    layers = [
        alt.Chart(drawn_once(smooth, labels))
        .mark_line(strokeWidth=1.5)
        .encode(x=x, y=y, color=hue, tooltip=tips)
    ]
    if not val.empty:
        layers.append(
            alt.Chart(drawn_once(val, labels))
            .mark_point(filled=True, size=60, opacity=0.9)
            .encode(x=x, y=y, color=hue, shape=shape(list(labels), labels=labels), tooltip=tips)
        )
    chart = alt.layer(*layers).properties(width=COLUMN, height=210)
    seeds = f", mean of {evidence.seeds} seeds" if evidence.seeds > 1 else ""
    note = (
        f"{evidence.task}: lines are training loss (running mean of {_WINDOW} recorded points{seeds}), "
        "points validation loss; equal curves are drawn as one."
    )
    return Figure("loss", _title(val if not val.empty else smooth, val.empty), chart, note)


def _title(curves: pd.DataFrame, training: bool) -> str:
    last = curves.sort_values("step").groupby("config")["value"].last().sort_values()
    what = "training" if training else "validation"
    if len(last) == 1:
        return f"{last.index[0]} ends at a {what} loss of {last.iloc[0]:.3f} nats"
    return (
        f"Last {what} loss is lowest in {last.index[0]} ({last.iloc[0]:.3f} nats), highest in "
        f"{last.index[-1]} ({last.iloc[-1]:.3f})"
    )
