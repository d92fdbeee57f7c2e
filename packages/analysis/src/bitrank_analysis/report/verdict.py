"""The first lines of the report: the result for each task and baseline, and its statistical power."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import BASELINES, Evidence
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.planned import planned_sentences
from bitrank_analysis.statistics.verdicts import ALIKE, AS_GOOD, BETTER, DIFFERS, UNRESOLVED, WORSE

# Verdict of a comparison → wording in a line, from the strongest claim to the weakest.
_CLAIMS = {
    BETTER: "better",
    AS_GOOD: "as good",
    DIFFERS: " on these examples",
    ALIKE: "level",
    UNRESOLVED: "unresolved",
    WORSE: "worse",
}
# Verb before the wording, for one arm and for several.
_VERBS = {claim: ("differs", "differ") if claim == DIFFERS else ("is ", "are ") for claim in _CLAIMS}


def verdict(evidence: Sequence[Evidence]) -> list[str]:
    """One line per planned arm, then one per task and baseline, from the paired comparisons; then their
    power."""
    planned = [sentence for task in evidence for sentence in planned_sentences(task)]
    lines = [_against(task, baseline) for task in evidence for baseline in BASELINES]
    return [*planned, *lines, _how_sure(evidence)]


def _against(task: Evidence, baseline: str) -> str:
    rows = task.comparisons
    rows = rows[rows["baseline"] == baseline] if not rows.empty else rows
    prefix = f"{task.task}, against {baseline}:"
    if rows.empty:
        return f"{prefix} no comparison, because {_why_not(task, baseline)}."
    gain = rows["difference"] if task.higher_is_better else -rows["difference"]
    ranked = rows.assign(_gain=gain).sort_values("_gain", ascending=False)
    groups = {claim: ranked[ranked["verdict"] == claim] for claim in _CLAIMS}
    shown = [claim for claim, group in groups.items() if len(group)]
    one_seed = " (one seed; another may differ)" if {DIFFERS, ALIKE} & set(shown) else ""
    return f"{prefix} {'; '.join(_group(task, groups[claim], claim) for claim in shown)}{one_seed}."


def _group(task: Evidence, group: pd.DataFrame, claim: str) -> str:
    """Name the arms with one verdict, from best to worst; for a single arm also the bytes that it saves."""
    names = [str(name) for name in group["candidate"]]
    one = len(names) == 1
    text = f"{phrasing.listed(names)} {_VERBS[claim][0 if one else 1]}{_CLAIMS[claim]}"
    if claim in (AS_GOOD, ALIKE):
        text += f" within {phrasing.margin(float(group.iloc[0]['margin']), task.metric)}"
    return text + (_saving(task, group.iloc[0]) if one else "")


def _saving(task: Evidence, row: pd.Series) -> str:
    """The candidate's stored bytes, adapters counted, relative to the baseline; "" below half a percent."""
    size = task.arms.set_index("config")["stored_mib"]
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
    if not others:
        return "no other arm has a finished run"
    return f"its only comparison, with {phrasing.listed(others)}, is in the other line"


def _how_sure(evidence: Sequence[Evidence]) -> str:
    parts = [_power(task) for task in evidence if not task.comparisons.empty]
    tail = _covered(evidence)
    if not parts:
        return f"How sure: nothing was compared, and {tail}."
    family = "p values are corrected (Holm) for the number of comparisons of each task"
    return f"How sure: {'; '.join(parts)}; {tail}; {family}."


def _covered(evidence: Sequence[Evidence]) -> str:
    """The sources of variation that the comparisons cover: only seeds that both arms of a pair have count."""
    compared = [task for task in evidence if not task.comparisons.empty]
    trained = max(int(task.arms["seeds"].max()) for task in evidence)
    common = {int(count) for task in compared for count in task.comparisons["seeds"]} or {trained}
    if common == {1}:
        which = "one seed was trained" if trained == 1 else "the arms of each pair have one seed in common"
        return f"{which}, so the variation between seeds is not known"
    alone = "; pairs with one common seed: examples alone" if 1 in common else ""
    seeds = f"{max(common)} {'were trained' if max(common) == trained else 'in common'}"
    return f"tests and intervals cover variation of examples and of seeds (up to {seeds}{alone})"


def _power(task: Evidence) -> str:
    """The smallest difference that a study of this size detects with 80 % power, as text."""
    rows = task.comparisons
    unit = metric_of(task.metric).examples_name
    detectable = float(rows["detectable"].median())
    count = f"{int(rows['n'].iloc[0]):,} {unit} of {task.task}"
    if math.isnan(detectable):
        return f"no detectable difference can be computed from the {count}"
    change = abs(phrasing.change(detectable, task.metric))
    size = f"{change:.1f}" if change >= 0.05 else f"{change:.2g}"
    difference = f"a true difference of {size} {phrasing.unit(task.metric)}"
    return f"with the {count}, {difference} is found in four of five studies, and a smaller one often missed"
