"""Sentences on planned arms: each against the config whose bytes it was given, and against the best other
arm.

A planned arm is one whose formats and ranks a planner chose before training (tag ``family`` of its runs). Its
comparisons with all other arms belong to the task's one family of tests, so choosing the best other arm
afterwards is covered by the correction.
"""

from __future__ import annotations

import math

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.statistics.verdicts import ALIKE, AS_GOOD, BETTER, DIFFERS, UNRESOLVED, WORSE

_WORDINGS = {
    BETTER: "is better than {}",
    AS_GOOD: "is as good as {}",
    DIFFERS: "differs from {} on these examples (one seed)",
    ALIKE: "is level with {} on these examples (one seed)",
    UNRESOLVED: "is unresolved against {}",
    WORSE: "is worse than {}",
}
_REVERSED = {BETTER: WORSE, WORSE: BETTER}
REFERENCE = "B-Q4"


def planned_sentences(task: Evidence, costs: bool = True) -> list[str]:
    """One sentence per planned arm of ``task``: its verdicts, intervals and bytes.

    With ``costs`` it also has the seconds of planning and of a run.
    """
    return [sentence for name in task.planned if (sentence := _sentence(task, name, costs))]


def best_other(task: Evidence, name: str) -> str | None:
    """The arm with the best mean quality besides ``name``; None if there is no other."""
    others = task.arms[task.arms["config"] != name]
    ranked = others.sort_values("quality", ascending=not task.higher_is_better, kind="stable")
    return str(ranked["config"].iloc[0]) if len(ranked) else None


def pair(task: Evidence, candidate: str, baseline: str) -> pd.Series | None:
    """The comparison ``candidate`` − ``baseline``, turned around if it was made the other way; None if
    absent.

    Of a row that is turned around, difference, interval and verdict are those of the new direction.
    """
    rows = task.comparisons
    if rows.empty:
        return None
    found = rows[(rows["candidate"] == candidate) & (rows["baseline"] == baseline)]
    if len(found):
        return found.iloc[0]
    found = rows[(rows["candidate"] == baseline) & (rows["baseline"] == candidate)]
    if found.empty:
        return None
    row = found.iloc[0].copy()
    row["candidate"], row["baseline"] = candidate, baseline
    row["difference"], row["low"], row["high"] = -row["difference"], -row["high"], -row["low"]
    row["verdict"] = _REVERSED.get(row["verdict"], row["verdict"])
    return row


def _sentence(task: Evidence, name: str, costs: bool) -> str:
    best = best_other(task, name)
    parts = []
    for other in dict.fromkeys([REFERENCE, best]):
        row = pair(task, name, other) if other else None
        if row is not None:
            parts.append(_against(task, row) + (", the best other arm" if other == best else ""))
    if not parts:
        return ""
    cost = _cost(task, name) if costs else ""
    return f"On {task.task}, {name}{cost} {'; it '.join(parts)}."


def _against(task: Evidence, row: pd.Series) -> str:
    change, low, high = (
        phrasing.signed(phrasing.change(float(row[key]), task.metric), 2)
        for key in ("difference", "low", "high")
    )
    size = _size(task, str(row["candidate"]), str(row["baseline"]))
    words = _WORDINGS[row["verdict"]].format(row["baseline"])
    return f"{words} ({change} {phrasing.unit(task.metric)} [{low}, {high}]{size})"


def _size(task: Evidence, name: str, other: str) -> str:
    """Stored bytes, adapters counted, relative to the other arm; "" if they were not recorded."""
    stored = task.arms.set_index("config")["stored_mib"]
    ratio = float(stored[name] / stored[other] - 1)
    if math.isnan(ratio):
        return ""
    if abs(ratio) < 0.005:
        return ", in equal stored bytes"
    return f", in {abs(100 * ratio):.0f} % {'fewer' if ratio < 0 else 'more'} stored bytes"


def _cost(task: Evidence, name: str) -> str:
    row = task.arms.set_index("config").loc[name]
    if math.isnan(row["plan_s"]) or math.isnan(row["seconds"]):
        return ""
    return f" (planned in {phrasing.whole(row['plan_s'])} s; a run takes {phrasing.whole(row['seconds'])} s)"
