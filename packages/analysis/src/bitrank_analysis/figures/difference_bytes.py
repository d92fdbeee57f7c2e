"""Differences between planners at equal bytes, against the bytes of the budget."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.figures.theme import WIDE, Figure, colour, shape

_SPREAD = 0.012  # shift between two arms of one budget, as a share of its bytes


def difference_bytes(frame: pd.DataFrame, task: str) -> Figure:
    """Each arm's difference from the reference of its budget, with the interval, against MiB of the budget.

    ``frame`` is that of :func:`~bitrank_analysis.report.planners.arms_table`; arms without a budget are left
    out. Raises :class:`AnalysisError` if no arm was compared.
    """
    pairs = frame[frame["baseline"].notna() & frame["budget"].notna()]
    if pairs.empty:
        raise AnalysisError(
            f"expected an arm of {task} beside the reference of its budget, got none; run another arm"
        )
    metric = str(pairs["metric"].iloc[0])
    names = zip(pairs["config"], pairs["baseline"], strict=True)
    rows = pd.DataFrame({"arm": [_arm(name, base) for name, base in names]})
    for column in ("difference", "low", "high"):
        rows[column] = [phrasing.change(float(value), metric) for value in pairs[column]]
    arms = sorted(set(rows["arm"]))
    places = [arms.index(arm) - (len(arms) - 1) / 2 for arm in rows["arm"]]
    rows["mib"] = [
        budget / 2**20 * (1 + _SPREAD * place) for budget, place in zip(pairs["budget"], places, strict=True)
    ]
    x = alt.X("mib:Q", title="Budget of model and adapters, MiB", scale=alt.Scale(zero=False, padding=20))
    title = f"Difference from the reference, {phrasing.unit(metric)}"
    base = alt.Chart(rows).encode(x=x, color=colour(arms, "arm"))
    chart = alt.layer(
        alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(style="guide").encode(y="zero:Q"),
        base.mark_line(strokeWidth=0.8, opacity=0.5).encode(y=alt.Y("difference:Q", title=title)),
        base.mark_rule(strokeWidth=1.2).encode(y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(y="difference:Q", shape=shape(arms, "arm")),
    ).properties(width=WIDE, height=260)
    references = ", ".join(dict.fromkeys(pairs["baseline"]))
    note = (
        f"{task}: arm minus the reference of the same budget ({references}), "
        "with 95 % intervals over examples and seeds; arms of one budget are drawn side by side."
    )
    return Figure(f"difference-bytes-{task}", "Planners at equal bytes", chart, note, wide=True)


def _arm(config: str, baseline: str) -> str:
    """The arm's name without the budget, which is the common end of both configs."""
    budget = baseline.partition("-")[2]
    for start in range(len(budget)):
        if config.endswith(f"-{budget[start:]}") and (start == 0 or budget[start - 1] == "-"):
            return config.removesuffix(f"-{budget[start:]}")
    return config
