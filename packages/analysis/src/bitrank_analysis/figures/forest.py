"""Forest plot: differences from the baselines with their intervals."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.theme import COLUMN, Figure, colour, shape
from bitrank_analysis.statistics.verdicts import ALIKE, AS_GOOD, BETTER, DIFFERS, UNRESOLVED, WORSE, short

_WORDINGS = {
    BETTER: "better than",
    AS_GOOD: "as good as",
    DIFFERS: "apart from",
    ALIKE: "level with",
    WORSE: "worse than",
}
_SIDES = ("difference", "low", "high", "seed_low", "seed_high")


def forest(evidence: Evidence) -> Figure:
    """One row per candidate, one panel per baseline; the grey band is the equivalence margin.

    Raises :class:`AnalysisError` if there is no comparison.
    """
    pairs = evidence.comparisons
    if pairs.empty:
        raise AnalysisError(
            "expected two arms to compare, one of them a baseline, got none: "
            f"{evidence.gaps.get('comparisons', 'nothing to compare')}"
        )
    wording = [short(verdict).removesuffix(" (one seed)") for verdict in pairs["verdict"]]
    rows = pairs.assign(wording=wording)
    for side in _SIDES:
        rows[side] = [phrasing.change(value, evidence.metric) for value in pairs[side]]
    margin = phrasing.change(float(pairs["margin"].iloc[0]), evidence.metric)
    baselines = list(dict.fromkeys(rows["baseline"]))
    panels = [
        _panel(rows[rows["baseline"] == name], evidence, margin, last=name == baselines[-1])
        for name in baselines
    ]
    chart = alt.vconcat(*panels, spacing=8).resolve_scale(x="shared", color="shared", shape="shared")
    better = "right" if evidence.higher_is_better else "left"
    several = rows["seed_low"].notna().any()
    intervals = (
        "difference with 95 % interval over examples"
        f"{' and seeds; thin bars: over seeds alone' if several else ''}"
    )
    note = (
        f"{evidence.task}: {intervals}; {better} of the line is better; band: ±{margin:.2g} counts as equal."
    )
    return Figure("forest", _title(pairs), chart, note)


def _panel(
    rows: pd.DataFrame, evidence: Evidence, margin: float, last: bool
) -> alt.LayerChart | alt.FacetChart:
    title = f"Difference in {phrasing.unit(evidence.metric)}".replace("in %", "in percent") if last else None
    y = alt.Y("candidate:N", sort=evidence.configs, title=None)
    x = alt.X("difference:Q", title=title)
    hue, form = (
        colour(evidence.configs, "candidate", legend=False),
        shape(evidence.configs, "candidate", legend=False),
    )
    base = alt.Chart(rows)
    tips = [
        "candidate:N",
        *(alt.Tooltip(f"{side}:Q", format=".2f") for side in _SIDES[:3]),
        alt.Tooltip("p_holm:Q", format=".3f"),
        "verdict:N",
    ]
    layers = [
        alt.Chart(pd.DataFrame({"low": [-margin], "high": [margin]}))
        .mark_rect(style="band")
        .encode(x="low:Q", x2="high:Q"),
        alt.Chart(pd.DataFrame({"zero": [0]})).mark_rule(style="guide").encode(x="zero:Q"),
        base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", y=y, color=hue),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            x=x, y=y, color=hue, shape=form, tooltip=tips
        ),
        base.mark_text(align="left", x=COLUMN - 62, style="muted").encode(y=y, text="wording:N"),
    ]
    seeded = rows.dropna(subset=["seed_low", "seed_high"])
    if len(seeded):
        thin = alt.Chart(seeded).mark_rule(strokeWidth=1, strokeDash=[3, 2], yOffset=6)
        layers.append(thin.encode(x="seed_low:Q", x2="seed_high:Q", y=y, color=hue))
    head = alt.Title(
        f"against {rows['baseline'].iloc[0]}", fontSize=12, anchor="start", frame="bounds", offset=4
    )
    return alt.layer(*layers).properties(width=COLUMN - 70, height=24 * len(rows), title=head)


def _title(pairs: pd.DataFrame) -> str:
    if (pairs["verdict"] == UNRESOLVED).all():
        return (
            f"Nothing resolved: none of {len(pairs)} differences can be distinguished from zero, and "
            "none is shown to be small"
        )
    baselines = dict.fromkeys(pairs["baseline"])
    title = "; ".join(_against(pairs[pairs["baseline"] == baseline], str(baseline)) for baseline in baselines)
    one_seed = pairs["verdict"].isin((DIFFERS, ALIKE)).any()
    return f"On these examples, with one seed: {title}" if one_seed else title


def _against(rows: pd.DataFrame, baseline: str) -> str:
    """The verdicts against one baseline as text."""
    sentences = []
    for verdict, wording in _WORDINGS.items():
        names = [str(name) for name in rows[rows["verdict"] == verdict]["candidate"]]
        if names:
            sentences.append(f"{phrasing.listed(names)} {wording} {baseline}")
    return ", ".join(sentences) if sentences else f"nothing resolved against {baseline}"
