"""Trainable parameters against test loss."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.theme import COLUMN, Figure, colour, shape, side_by_side


def parameters(evidence: Evidence) -> Figure:
    """One point per arm (mean over seeds) and a small point per seed."""
    runs = evidence.measured("adapter_params", "loss")
    runs = runs.assign(thousands=runs["adapter_params"] / 1000)
    means = runs.groupby("config", as_index=False)[["thousands", "loss", "trainable_percent"]].mean()
    hue, form = colour(evidence.configs), shape(evidence.configs)
    x = alt.X("thousands:Q", title="Trainable parameters, thousands", scale=alt.Scale(zero=False, padding=20))
    y = alt.Y("loss:Q", title="Test loss, nats (lower is better)", scale=alt.Scale(zero=False, padding=12))
    tips = [
        "config:N",
        alt.Tooltip("thousands:Q", format=",.1f"),
        alt.Tooltip("loss:Q", format=".4f"),
        alt.Tooltip("trainable_percent:Q", format=".2f"),
    ]
    shift = side_by_side(dict(zip(means["config"], means["thousands"], strict=True)))
    layers = []
    for name in means["config"]:
        main = alt.Chart(means[means["config"] == name]).mark_point(
            filled=True, size=85, opacity=1, xOffset=shift[name]
        )
        single = alt.Chart(runs[runs["config"] == name]).mark_point(
            filled=True, size=12, opacity=0.8, xOffset=shift[name] + 5
        )
        layers += [single.encode(x=x, y=y, color=hue, shape=form)] if evidence.seeds > 1 else []
        layers += [main.encode(x=x, y=y, color=hue, shape=form, tooltip=tips)]
    chart = alt.layer(*layers).properties(width=COLUMN, height=200)
    return Figure("parameters", _title(means), chart, _note(evidence) + evidence.left_out(means))


def _note(evidence: Evidence) -> str:
    seeds = "; large points are means over seeds" if evidence.seeds > 1 else ""
    return (
        f"{evidence.task}: adapters and whatever else is trained, as counted at the start; arms of equal "
        f"count stand side by side{seeds}."
    )


def _title(means: pd.DataFrame) -> str:
    best, most, least = (
        means.loc[at]
        for at in (means["loss"].idxmin(), means["thousands"].idxmax(), means["thousands"].idxmin())
    )
    if len(means) == 1:
        return (
            f"{best['config']} trains {best['thousands']:,.0f} thousand parameters to a loss of "
            f"{best['loss']:.3f}"
        )
    if most["thousands"] / least["thousands"] < 1.001:
        return (
            f"All arms train {most['thousands']:,.0f} thousand parameters; {best['config']} has the lowest "
            f"loss ({best['loss']:.3f})"
        )
    return (
        f"The lowest loss, {best['loss']:.3f}, is {best['config']}'s with {best['thousands']:,.0f} thousand "
        "trainable parameters"
    )
