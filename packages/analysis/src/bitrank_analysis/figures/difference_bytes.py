"""Differences between planners at equal bytes, against the bytes of the budget."""

from __future__ import annotations

import re
from collections.abc import Sequence

import altair as alt
import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.figures.theme import WIDE, Figure, colour, shape
from bitrank_analysis.files import name_of
from bitrank_analysis.metrics import metric_of

LayeredChart = alt.LayerChart | alt.FacetChart  # what altair's `layer(…).properties(…)` may return
_BUDGET = re.compile(r"[0-9][0-9.]*[A-Za-z]+")  # such as 3.5bits or 60MB
_SPREAD = 0.012  # shift between two arms of one budget, as a share of its bytes
# Multiple of the 90th percentile of the arms' absolute differences. An arm beyond it is drawn at the edge: on
# its scale the others' differences would not be visible.
_FAR = 3.0


def difference_bytes(frame: pd.DataFrame, task: str) -> Figure:
    """Each arm's difference from the reference of its budget, with the interval.

    Several budgets are drawn along their MiB; of one budget every arm has a row, ordered by its difference.
    ``frame`` is that of :func:`~bitrank_analysis.report.planners.arms_table`; arms without a budget are left
    out. Raises :class:`AnalysisError` if no arm was compared.
    """
    pairs = frame[frame["baseline"].notna() & frame["budget"].notna()]
    if pairs.empty:
        raise AnalysisError(
            f"expected an arm of {task} beside the reference of its budget, got none; run another arm"
        )
    metric = str(pairs["metric"].iloc[0])
    rows = pd.DataFrame({"arm": list(pairs["config"])})
    for column in ("difference", "low", "high"):
        rows[column] = [phrasing.change(float(value), metric) for value in pairs[column]]
    references = list(dict.fromkeys(pairs["baseline"]))
    note = (
        f"{task}: arm minus the reference of the same budget ({', '.join(references)}), "
        "with 95 % intervals over examples and seeds; "
    )
    if len(references) == 1:
        chart, remark = _one_row_per_arm(rows, metric)
    else:
        rows["arm"] = _without_budget(pairs, references)
        chart, remark = (
            _along_bytes(rows, list(pairs["budget"]), metric),
            "arms of one budget are side by side.",
        )
    return Figure(
        name_of("difference-bytes", task), "Planners at equal bytes", chart, note + remark, wide=True
    )


def _along_bytes(rows: pd.DataFrame, budgets: list[float], metric: str) -> LayeredChart:
    arms = sorted(set(rows["arm"]))
    places = [arms.index(arm) - (len(arms) - 1) / 2 for arm in rows["arm"]]
    mib = [budget / 2**20 * (1 + _SPREAD * place) for budget, place in zip(budgets, places, strict=True)]
    x = alt.X("mib:Q", title="Budget of model and adapters, MiB", scale=alt.Scale(zero=False, padding=20))
    title = f"Difference from the reference, {phrasing.unit(metric)}"
    base = alt.Chart(rows.assign(mib=mib)).encode(x=x, color=colour(arms, "arm"))
    chart: LayeredChart = alt.layer(
        alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(style="guide").encode(y="zero:Q"),
        base.mark_line(strokeWidth=0.8, opacity=0.5).encode(y=alt.Y("difference:Q", title=title)),
        base.mark_rule(strokeWidth=1.2).encode(y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(y="difference:Q", shape=shape(arms, "arm")),
    ).properties(width=WIDE, height=260)
    return chart


def _one_row_per_arm(rows: pd.DataFrame, metric: str) -> tuple[LayeredChart, str]:
    """The chart of one budget, and the remark on its direction.

    An arm far outside of the others is drawn at the edge, with its difference as text.
    """
    higher = metric_of(metric).higher_is_better
    ordered = rows.sort_values("difference", ascending=not higher, ignore_index=True)
    limit = _FAR * float(ordered["difference"].abs().quantile(0.9))
    near = ordered[ordered["difference"].abs() <= limit]
    ends = near[["difference", "low", "high"]]  # few documents have no interval
    domain = [min(0.0, float(ends.min().min())), max(0.0, float(ends.max().max()))]
    far = ordered[ordered["difference"].abs() > limit]
    far = far.assign(text=[phrasing.signed(value, 0) for value in far["difference"]])
    y = alt.Y("arm:N", sort=list(ordered["arm"]), title=None)
    scale = alt.Scale(domain=domain, clamp=True, nice=True)
    x = alt.X("difference:Q", scale=scale, title=f"Difference from the reference, {phrasing.unit(metric)}")
    base = alt.Chart(ordered).encode(y=y)
    layers = [
        alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(style="guide").encode(x="zero:Q"),
        base.mark_rule(strokeWidth=1.2).encode(x="low:Q", x2="high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(x=x),
    ]
    above, below = far[far["difference"] > 0], far[far["difference"] < 0]
    if len(above):
        layers.append(alt.Chart(above).mark_text(align="right", dx=-6).encode(x=x, y=y, text="text:N"))
    if len(below):
        layers.append(alt.Chart(below).mark_text(align="left", dx=6).encode(x=x, y=y, text="text:N"))
    chart: LayeredChart = alt.layer(*layers).properties(width=WIDE, height=alt.Step(15))
    better = "right" if higher else "left"
    edge = "; a number at the edge is a difference outside of the axis" if len(far) else ""
    return chart, f"{better} of the line is better{edge}."


def _without_budget(pairs: pd.DataFrame, references: list[str]) -> list[str]:
    """Names of arms without the budget at their end."""
    ends = budget_endings(references)
    return [
        config.removesuffix(ends[baseline])
        for config, baseline in zip(pairs["config"], pairs["baseline"], strict=True)
    ]


def budget_endings(references: Sequence[str]) -> dict[str, str]:
    """{reference: the budget at the end of its name, such as ``-3.5bits``}.

    The references are one arm at several budgets, so the budgets are what they do not begin with alike. The
    shortest reference may be the beginning of all: it then has no budget in its name. The budget of a single
    reference is known only if it is a number with a unit.
    """
    if len(references) == 1:
        last = references[0].rpartition("-")[2]
        return {references[0]: f"-{last}" if _BUDGET.fullmatch(last) else ""}
    parts = [name.split("-") for name in references]
    shortest = min(map(len, parts))
    shared = next((n for n in range(shortest) if len({part[n] for part in parts}) > 1), shortest)
    return {name: "".join(f"-{word}" for word in name.split("-")[shared:]) for name in references}
