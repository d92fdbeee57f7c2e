"""The answer, one line for each task and baseline, and how sure it is. The figures stand in the tables below
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import BASELINES, Evidence
from bitrank_analysis.statistics.verdicts import ALIKE, AS_GOOD, BETTER, DIFFERS, UNRESOLVED, WORSE

# Verdict of a comparison → how a line says it, from the strongest claim to the weakest.
_CLAIMS = {
    BETTER: "better",
    AS_GOOD: "as good",
    DIFFERS: " on these examples",
    ALIKE: "level",
    UNRESOLVED: "unresolved",
    WORSE: "worse",
}
# The verb before it, for one arm and for several.
_VERBS = {claim: ("differs", "differ") if claim == DIFFERS else ("is ", "are ") for claim in _CLAIMS}


def verdict(evidence: Sequence[Evidence]) -> list[str]:
    """One line for each task and baseline, worked out from the verdicts of the paired comparisons; then how
    sure they are.
    """
    lines = [_against(task, baseline) for task in evidence for baseline in BASELINES]
    return [*lines, _how_sure(evidence)]


def _against(task: Evidence, baseline: str) -> str:
    rows = task.comparisons
    rows = rows[rows["baseline"] == baseline] if not rows.empty else rows
    place = f"{task.task}, against {baseline}:"
    if rows.empty:
        return f"{place} nothing can be said, since {_why_not(task, baseline)}."
    gain = rows["difference"] if task.higher_is_better else -rows["difference"]
    ranked = rows.assign(_gain=gain).sort_values("_gain", ascending=False)
    groups = {claim: ranked[ranked["verdict"] == claim] for claim in _CLAIMS}
    shown = [claim for claim, group in groups.items() if len(group)]
    one_seed = " (one seed; another may differ)" if {DIFFERS, ALIKE} & set(shown) else ""
    return f"{place} {'; '.join(_group(task, groups[claim], claim) for claim in shown)}{one_seed}."


def _group(task: Evidence, group: pd.DataFrame, claim: str) -> str:
    """The arms with one verdict, ``group`` from best to worst; a single arm with the bytes that it saves."""
    names = [str(name) for name in group["candidate"]]
    one = len(names) == 1
    text = f"{phrasing.listed(names)} {_VERBS[claim][0 if one else 1]}{_CLAIMS[claim]}"
    if claim in (AS_GOOD, ALIKE):
        text += f" within {phrasing.margin(float(group.iloc[0]['margin']), task.metric)}"
    return text + (_saving(task, group.iloc[0]) if one else "")


def _saving(task: Evidence, row: pd.Series) -> str:
    """How many stored bytes the candidate needs beside the baseline."""
    size = task.arms.set_index("config")["model_mib"]
    ratio = size[row["candidate"]] / size[row["baseline"]] - 1
    if not abs(ratio) >= 0.005:
        return ""
    return f" in {abs(100 * ratio):.0f} % {'fewer' if ratio < 0 else 'more'} stored bytes"


def _why_not(task: Evidence, baseline: str) -> str:
    if "comparisons" in task.gaps:
        return task.gaps["comparisons"].rstrip(".")
    if baseline not in task.configs:
        return f"{baseline} has no finished run"
    others = [name for name in task.configs if name != baseline]
    return (
        "no other arm has a finished run"
        if not others
        else f"its only pairing, with {phrasing.listed(others)}, stands in the other sentence"
    )


def _how_sure(evidence: Sequence[Evidence]) -> str:
    parts = [_power(task) for task in evidence if not task.comparisons.empty]
    seeds = {int(task.arms["seeds"].max()) for task in evidence}
    tail = (
        "one seed was trained, so what another seed would give is not known"
        if seeds == {1}
        else f"tests and intervals allow for other examples and for other seeds (up to {max(seeds)} were trained)"
    )
    if not parts:
        return f"How sure: nothing was compared, and {tail}."
    family = "p values are corrected (Holm) for the number of comparisons of each task"
    return f"How sure: {'; '.join(parts)}; {tail}; {family}."


def _power(task: Evidence) -> str:
    """The smallest difference that such a study usually finds, in words."""
    rows = task.comparisons
    unit = "examples" if task.metric == "acc" else "documents"
    seen = float(rows["detectable"].median())
    count = f"{int(rows['n'].iloc[0]):,} {unit} of {task.task}"
    if math.isnan(seen):
        return f"the {count} give no figure for what they could have shown"
    change = abs(phrasing.change(seen, task.metric))
    size = f"{change:.1f}" if change >= 0.05 else f"{change:.2g}"
    difference = f"a true difference of {size} {phrasing.unit(task.metric)}"
    return f"with the {count}, {difference} is found in four of five studies, and a smaller one often missed"
