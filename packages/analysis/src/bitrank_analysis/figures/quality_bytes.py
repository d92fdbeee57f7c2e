"""Quality against stored bytes or peak memory, with intervals, Pareto front and one point per seed."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.theme import COLUMN, Figure, colour, shape, side_by_side
from bitrank_analysis.statistics.pareto import ON, OPEN


def quality_bytes(evidence: Evidence) -> Figure:
    """Quality against the stored MiB of model and adapters."""
    return _quality_against(
        evidence, evidence.front, "stored_mib", "stored size", "Stored model and adapters, MiB"
    )


def quality_memory(evidence: Evidence) -> Figure:
    """Quality against the peak memory of training."""
    return _quality_against(
        evidence, evidence.memory_front, "peak_mib", "peak memory", "Peak memory of training, MiB"
    )


def _quality_against(evidence: Evidence, front: pd.DataFrame, column: str, cost: str, axis: str) -> Figure:
    if front.empty:
        raise AnalysisError(
            f"expected a front of {cost}, got none: {evidence.gaps.get(f'front of {cost}', 'no arm')}"
        )
    points = front.assign(
        **{part: phrasing.on_axis(front[part], evidence.metric) for part in ("quality", "low", "high")}
    )
    offsets = side_by_side(dict(zip(points["config"], points["x"], strict=True)))
    budgets = points[points["config"].isin(evidence.planned)].sort_values("x")
    joined = column == "stored_mib" and budgets["x"].nunique() > 1
    layers = [_front_line(points, axis), *([_budget_line(budgets)] if joined else [])]
    for name in [name for name in evidence.configs if name in set(points["config"])]:
        layers += _one_arm(points[points["config"] == name], evidence, offsets[name], column)
    chart = alt.layer(*layers).properties(width=COLUMN, height=210)
    seeds = ", small points single seeds" if evidence.seeds > 1 else ""
    ring = f"; a ring marks the planned {'arms' if len(evidence.planned) > 1 else 'arm'}"
    share = front.attrs.get("size_share", 0.0)
    varies = f"; {cost} varies by {100 * share:.1f} % between runs (standard deviation)" if share else ""
    note = (
        f"{evidence.task}: bars are 95 % intervals over examples{seeds}; the dashed line is the front of the "
        "means as measured"
        f"{varies}; arms of one size stand side by side{ring if evidence.planned else ''}"
        f"{'; the solid line joins the planned arms, budget by budget' if joined else ''}."
    )
    return Figure(
        f"quality-{'bytes' if column == 'stored_mib' else 'memory'}",
        _title(points, evidence, cost),
        chart,
        note,
    )


def _front_line(points: pd.DataFrame, axis: str) -> alt.Chart:
    line = points[points["on_front"]].sort_values("x")[["x", "quality"]]
    x = alt.X(
        "x:Q",
        title=axis,
        axis=alt.Axis(tickCount=5, labelOverlap=True),
        scale=alt.Scale(zero=False, padding=26),
    )
    return (
        alt.Chart(line)
        .mark_line(interpolate="step-after", strokeDash=[4, 3], strokeWidth=1.2, style="guide")
        .encode(x=x, y=alt.Y("quality:Q", scale=alt.Scale(zero=False, padding=8)))
    )


def _budget_line(budgets: pd.DataFrame) -> alt.Chart:
    """The planned arms joined in the order of their bytes."""
    line = alt.Chart(budgets[["x", "quality"]]).mark_line(strokeWidth=1.6, style="guide")
    return line.encode(x="x:Q", y="quality:Q")


def _one_arm(point: pd.DataFrame, evidence: Evidence, offset: float, column: str) -> list[alt.Chart]:
    seeds = evidence.runs[evidence.runs["config"] == point["config"].iloc[0]]
    dots = pd.DataFrame(
        {
            "config": seeds["config"],
            "x": point["x"].iloc[0],
            "quality": phrasing.on_axis(seeds["quality"], evidence.metric),
        }
    )
    shown = [
        "config:N",
        alt.Tooltip("x:Q", format=".1f"),
        *(alt.Tooltip(f"{part}:Q", format=".2f") for part in ("quality", "low", "high")),
    ]
    hue, form = colour(evidence.configs), shape(evidence.configs)
    y = alt.Y("quality:Q", title=phrasing.axis(evidence.metric))
    bar = (
        alt.Chart(point)
        .mark_rule(strokeWidth=1.6, opacity=0.75, xOffset=offset)
        .encode(x="x:Q", y="low:Q", y2="high:Q", color=hue)
    )
    main = alt.Chart(point).mark_point(filled=True, size=85, opacity=1, xOffset=offset)
    main = main.encode(
        x="x:Q", y=y, color=hue, shape=form, tooltip=[*shown, alt.Tooltip("probability:Q", format=".2f")]
    )
    ring = alt.Chart(point).mark_point(
        filled=False, shape="circle", size=280, opacity=1, strokeWidth=1.4, xOffset=offset
    )
    rings = [ring.encode(x="x:Q", y=y, color=hue)] if point["config"].iloc[0] in evidence.planned else []
    if evidence.seeds < 2:
        return [bar, *rings, main]
    single = (
        alt.Chart(dots)
        .mark_point(filled=True, size=12, opacity=0.8, xOffset=offset + 5)
        .encode(x="x:Q", y=y, color=hue, shape=form)
    )
    return [bar, *rings, single, main]


def _title(points: pd.DataFrame, evidence: Evidence, cost: str) -> str:
    if len(points) == 1:
        return f"One arm only, {points['config'].iloc[0]}: no front of {cost} to draw"
    sure, unresolved = (
        [str(name) for name in points[points["membership"] == word].sort_values("x")["config"]]
        for word in (ON, OPEN)
    )
    front = f"the front of {cost} and {phrasing.name(evidence.metric)}"
    doubt = f"unresolved for {phrasing.listed(unresolved)}" if unresolved else ""
    if not sure:
        return f"No arm is surely on {front}; {doubt}"
    text = f"{phrasing.listed(sure)} {'is' if len(sure) == 1 else 'are'} on {front}"
    return f"{text}; {doubt}" if doubt else text
