"""The frontier of budgets: predicted loss of planned budgets above measured loss of trained arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.budget_curves import BudgetCurve
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.budget_curve import curve_title
from bitrank_analysis.figures.theme import COLUMN, STYLE, Figure, colour, shape
from bitrank_analysis.files import name_of

_BEYOND = 1.25  # largest drawn arm, in sizes of the largest planned budget: 16 bits would squeeze the curve
_HEIGHT = 170  # pixels of each panel


def budget_frontier(evidence: Evidence, curves: Sequence[BudgetCurve]) -> Figure:
    """Predicted added loss of ``curves`` and measured test loss of the arms, both in nats, against MiB.

    The panels share the axis of bytes (model and adapters) and have an axis of loss each: the prediction is
    the loss that a plan adds before training, the measurement is the loss after it. Raises
    :class:`AnalysisError` without a curve.
    """
    if not curves:
        raise AnalysisError(
            f"expected a curve of budgets for {evidence.task}, got none; make one with "
            "`bitrank plan --budgets`"
        )
    predicted = _predicted(curves)
    measured, outside = _measured(evidence, _BEYOND * float(predicted["mib"].max()))
    panels = [_prediction(predicted)]
    if not measured.empty:
        panels.append(_measurement(measured, evidence))
    chart = alt.vconcat(*panels, spacing=14).resolve_scale(x="shared")
    note = (
        f"{evidence.task}: above, one plan for each budget, with the loss that it is predicted to add before "
        "training to that of the 16-bit model; below, test loss of the arms after training, means over "
        f"seeds. Nats in both, on axes of their own.{_left_out(outside)}"
    )
    return Figure(name_of("frontier", evidence.task), _title(predicted, measured), chart, note)


def _predicted(curves: Sequence[BudgetCurve]) -> pd.DataFrame:
    """One row per planned budget: curve, budget, mib, loss."""
    planners = Counter(curve.planner for curve in curves)
    rows = []
    for curve in curves:
        label = curve.planner if planners[curve.planner] == 1 else f"{curve.planner} ({curve.name})"
        rows += [(label, point.budget, point.mib, point.added_loss) for point in curve.points]
    return pd.DataFrame(rows, columns=["curve", "budget", "mib", "loss"])


def _measured(evidence: Evidence, limit: float) -> tuple[pd.DataFrame, list[str]]:
    """config, mib and loss of the arms of at most ``limit`` MiB, and the names of larger arms.

    Arms whose size or loss was not recorded are in neither.
    """
    loss = evidence.runs.groupby("config")["loss"].mean()
    arms = evidence.arms.assign(loss=evidence.arms["config"].map(loss))
    known = arms[["config", "stored_mib", "loss"]].dropna().rename(columns={"stored_mib": "mib"})
    fits = known["mib"] <= limit
    return known[fits].reset_index(drop=True), [str(name) for name in known.loc[~fits, "config"]]


def _prediction(predicted: pd.DataFrame) -> Any:
    y = alt.Y("loss:Q", title="Predicted added loss, nats", scale=alt.Scale(padding=14))
    base = alt.Chart(predicted).encode(x=_mib(title=None), y=y)
    line = base.mark_line(strokeWidth=1.2, style="guide")
    several = predicted["curve"].nunique() > 1
    if several:
        legend = alt.Legend(title="planner", orient="top")
        line = line.encode(strokeDash=alt.StrokeDash("curve:N", legend=legend))
    points = base.mark_point(filled=True, size=50, color=STYLE["Plan-Q4"][0], opacity=1)
    labels = base.mark_text(dy=-11).encode(text="budget:N")
    return alt.layer(line, points, labels).properties(width=COLUMN, height=_HEIGHT)


def _measurement(measured: pd.DataFrame, evidence: Evidence) -> Any:
    y = alt.Y("loss:Q", title="Test loss, nats", scale=alt.Scale(zero=False, padding=14))
    drawn = [name for name in evidence.configs if name in set(measured["config"])]
    legend = alt.Legend(title=None, orient="bottom", columns=min(len(drawn), 3), values=drawn)
    # Colours and shapes follow all arms, as in the other figures.
    hue = colour(evidence.configs, legend=False).legend(legend)
    form = shape(evidence.configs, legend=False).legend(legend)
    tooltip = ["config:N", alt.Tooltip("mib:Q", format=".1f"), alt.Tooltip("loss:Q", format=".4f")]
    base = alt.Chart(measured).encode(x=_mib("Model and adapters, MiB"), y=y)
    points = base.mark_point(filled=True, size=85, opacity=1)
    points = points.encode(color=hue, shape=form, tooltip=tooltip)
    planned = measured[measured["config"].isin(evidence.planned)].sort_values("mib")
    layers = [points]
    if planned["mib"].nunique() > 1:
        line = alt.Chart(planned).mark_line(strokeWidth=1.6, style="guide")
        layers.insert(0, line.encode(x="mib:Q", y="loss:Q"))
    return alt.layer(*layers).properties(width=COLUMN, height=_HEIGHT)


def _mib(title: str | None) -> alt.X:
    axis = alt.Axis(tickCount=5, labelOverlap=True)
    return alt.X("mib:Q", title=title, axis=axis, scale=alt.Scale(zero=False, padding=26))


def _left_out(outside: Sequence[str]) -> str:
    if not outside:
        return ""
    verb = "is" if len(outside) == 1 else "are"
    return f" Larger than the budgets and not drawn {verb} {phrasing.listed(outside)}."


def _title(predicted: pd.DataFrame, measured: pd.DataFrame) -> str:
    first = predicted[predicted["curve"] == predicted["curve"].iloc[0]]
    title = curve_title(first.sort_values("mib"))
    if measured.empty:
        return f"{title}; no arm of this size was measured"
    least = measured.loc[measured["loss"].idxmin()]
    where = f"{least['config']}, {least['mib']:.3g} MiB"
    return f"{title}; the least measured loss is {least['loss']:.3g} ({where})"
