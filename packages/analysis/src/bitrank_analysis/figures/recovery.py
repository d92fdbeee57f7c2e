"""Loss of quality by quantization before training, and its recovery by training."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.theme import COLUMN, Figure
from bitrank_analysis.metrics import metric_of

_STAGES = ("before training", "after training")


def recovery(evidence: Evidence) -> Figure:
    """Quality before and after training, one row per arm (mean over seeds)."""
    means = _means(evidence)
    ends = means.assign(
        zero=phrasing.on_axis(means["zero"], evidence.metric),
        quality=phrasing.on_axis(means["quality"], evidence.metric),
    )
    points = ends.rename(columns=dict(zip(("zero", "quality"), _STAGES, strict=True))).melt(
        "config", var_name="stage", value_name="value"
    )
    y = alt.Y("config:N", sort=evidence.configs, title=None)
    axis = alt.X("value:Q", title=phrasing.axis(evidence.metric), scale=alt.Scale(zero=False, padding=34))
    lines = (
        alt.Chart(ends).mark_rule(strokeWidth=2, style="guide").encode(x=alt.X("zero:Q"), x2="quality:Q", y=y)
    )
    hue = alt.Color(
        "stage:N",
        scale=alt.Scale(domain=list(_STAGES), range=["#E69F00", "#0072B2"]),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    form = alt.Shape(
        "stage:N",
        scale=alt.Scale(domain=list(_STAGES), range=["diamond", "circle"]),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    dots = (
        alt.Chart(points)
        .mark_point(filled=True, size=75, opacity=1)
        .encode(
            x=axis,
            y=y,
            color=hue,
            shape=form,
            tooltip=["config:N", "stage:N", alt.Tooltip("value:Q", format=".2f")],
        )
    )
    ends_text = [
        _label(points[points["stage"] == stage], y, stage, evidence.higher_is_better) for stage in _STAGES
    ]
    chart = alt.layer(lines, dots, *ends_text).properties(width=COLUMN, height=30 * len(means))
    note = (
        f"{evidence.task}: the untrained model with each arm's precision, and the same after "
        f"training.{evidence.left_out(means)}"
    )
    return Figure("recovery", _title(means, evidence), chart, note)


def _means(evidence: Evidence) -> pd.DataFrame:
    """The metric's mean over seeds before and after training, one row per arm."""
    runs = evidence.measured("zero", "quality").groupby("config", as_index=False)
    return runs[["zero", "quality"]].agg(metric_of(evidence.metric).over_runs)


def _label(points: pd.DataFrame, y: alt.Y, stage: str, higher_is_better: bool) -> alt.Chart:
    """Numbers outside the dumbbell, on the side away from the other end."""
    left = (stage == _STAGES[0]) == higher_is_better
    mark = alt.Chart(points).mark_text(align="right" if left else "left", dx=-8 if left else 8)
    return mark.encode(x="value:Q", y=y, text=alt.Text("value:Q", format=".1f"))


def _title(means: pd.DataFrame, evidence: Evidence) -> str:
    by_name, metric = means.set_index("config"), evidence.metric
    if "B-FP" not in by_name.index or "B-Q4" not in by_name.index:
        best = by_name["quality"].idxmax() if evidence.higher_is_better else by_name["quality"].idxmin()
        ends = [phrasing.quality(by_name.loc[best, part], metric) for part in ("zero", "quality")]
        reached = f"Training takes {best} from {ends[0]} to {ends[1]} {phrasing.name(metric)}"
        return f"{reached}; without both baselines the harm of 4 bits is not known"
    before, after = (_harm(by_name, part, metric) for part in ("zero", "quality"))
    return (
        f"4-bit storage (B-Q4 against B-FP) changes {phrasing.name(metric)} by {before} before training and "
        f"by {after} after it"
    )


def _harm(by_name: pd.DataFrame, part: str, key: str) -> str:
    quantized, full, metric = by_name.loc["B-Q4", part], by_name.loc["B-FP", part], metric_of(key)
    change = 100 * (quantized / full - 1) if metric.is_log else metric.change(quantized - full)
    return f"{phrasing.signed(change)} {metric.change_unit}"
