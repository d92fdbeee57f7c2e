"""The verdict in three sentences: against full precision, against uniform 4 bits, and how sure all of it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import BASELINES, Evidence
from bitrank_analysis.statistics.verdicts import ALIKE, AS_GOOD, BETTER, DIFFERS, UNRESOLVED, WORSE

# Verdict of a comparison → how a sentence says it; the first that holds for an arm is told with its figures.
_CLAIMS = {
    BETTER: "better",
    AS_GOOD: "as good",
    DIFFERS: "apart",
    ALIKE: "level",
    UNRESOLVED: "unresolved",
    WORSE: "worse",
}


def verdict(evidence: Sequence[Evidence]) -> list[str]:
    """Three sentences over all tasks, worked out from the verdicts of the paired comparisons."""
    return [*(_against(evidence, baseline) for baseline in BASELINES), _how_sure(evidence)]


def _against(evidence: Sequence[Evidence], baseline: str) -> str:
    clauses = [_clause(task, baseline) for task in evidence]
    return f"Against {baseline}, {'; '.join(clauses)}."


def _clause(task: Evidence, baseline: str) -> str:
    """What one task says of one baseline: the strongest claim that the verdicts allow."""
    rows = task.comparisons
    rows = rows[rows["baseline"] == baseline] if not rows.empty else rows
    where = f"on {task.task}"
    if rows.empty:
        return f"nothing can be said {where}: {_why_not(task, baseline)}"
    gain = rows["difference"] if task.higher_is_better else -rows["difference"]
    ranked = rows.assign(_gain=gain).sort_values("_gain", ascending=False)
    groups = {claim: ranked[ranked["verdict"] == claim] for claim in _CLAIMS}
    shown = [claim for claim, group in groups.items() if len(group)]
    sentences = [_group(task, groups[claim], claim, measured=claim == shown[0]) for claim in shown]
    if {DIFFERS, ALIKE} & set(shown):
        return f"{where}, on the examples of one seed, {', and '.join(sentences)}: what another seed would give is not known"
    nothing = "no arm is shown to be better or as good: " if shown[0] == UNRESOLVED else ""
    return f"{where} {nothing}{', and '.join(sentences)}"


def _group(task: Evidence, group: pd.DataFrame, claim: str, measured: bool) -> str:
    """The arms with one verdict, ``group`` from best to worst; ``measured`` adds the figures of the best of them."""
    names = [str(name) for name in group["candidate"]]
    best = group.iloc[0]
    if claim == DIFFERS:
        return _apart(task, group)
    within = (
        f" within {phrasing.margin(float(best['margin']), task.metric)}" if claim in (AS_GOOD, ALIKE) else ""
    )
    text = f"{phrasing.listed(names)} {'is' if len(names) == 1 else 'are'} {_CLAIMS[claim]}{within}"
    if not measured:
        return text
    first = (
        ""
        if len(names) == 1
        else f", {'the least so' if claim == WORSE else 'the best of them'} {best['candidate']}"
    )
    return f"{text}{first} {_by(best)}{_saving(task, best)}"


def _apart(task: Evidence, group: pd.DataFrame) -> str:
    """Arms that differ on the examples of one seed, each with its difference and interval: there is no best of them."""
    sentences = [f"{row['candidate']} {_by(row)}{_saving(task, row)}" for _, row in group.iterrows()]
    return f"{phrasing.listed(sentences)} {'differs' if len(sentences) == 1 else 'differ'}"


def _by(row: pd.Series) -> str:
    """Difference and interval in words."""
    metric = str(row["metric"])
    value, low, high = (
        phrasing.signed(phrasing.change(float(row[part]), metric)) for part in ("difference", "low", "high")
    )
    return f"({value} {phrasing.unit(metric)}, 95 % interval {low} to {high})"


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
        "with one seed, the intervals speak of other examples for these trained models and cannot tell what another seed would give"
        if seeds == {1}
        else f"with up to {max(seeds)} seeds, tests and intervals hold both sources of variation, examples and seeds"
    )
    if not parts:
        return f"How sure: nothing was compared, and {tail}."
    family = "p values are corrected (Holm) over the comparisons of each task, which is a family of its own"
    return f"How sure: {family}; {'; '.join(parts)}; {tail}."


def _power(task: Evidence) -> str:
    rows = task.comparisons
    unit = "examples" if task.metric == "acc" else "documents"
    seen = rows["detectable"].median()
    count = f"{int(rows['n'].iloc[0]):,} {unit} of {task.task}"
    if math.isnan(seen):
        return f"the {count} give no figure for what they could have shown"
    difference = f"{abs(phrasing.change(float(seen), task.metric)):.1f} {phrasing.unit(task.metric)}"
    return f"the {count} find a difference of {difference} four times in five (median, uncorrected)"
