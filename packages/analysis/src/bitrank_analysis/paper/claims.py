"""Claims derived from verdicts, each with its test: a claim changes or disappears with the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import BASELINES, Evidence
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.planned import planned_sentences
from bitrank_analysis.statistics import ONE_SEED
from bitrank_analysis.statistics.pareto import ON, OPEN
from bitrank_analysis.statistics.verdicts import (
    ALIKE,
    AS_GOOD,
    BETTER,
    DIFFERS,
    UNRESOLVED,
    VERDICTS,
    WORSE,
)

ALPHA = 0.05
_EFFECTS = {"rank": "adaptive instead of fixed rank", "precision": "NF4 instead of 16 bits"}


def claims(task: Evidence) -> list[str]:
    """Sentences on the comparisons of one task.

    Each verdict has its difference, interval, corrected p-value and number of seeds.
    """
    against_baselines = [sentence for baseline in BASELINES for sentence in _against(task, baseline)]
    arms = [*planned_sentences(task, costs=False), *against_baselines]
    return [*arms, *factorial_claims(task), *_front(task), *_power(task), *seed_claims(task)]


def _against(task: Evidence, baseline: str) -> list[str]:
    rows = _rows(task, baseline)
    groups = {verdict: rows[rows["verdict"] == verdict] for verdict in VERDICTS} if len(rows) else {}
    return [_verdict(task, baseline, verdict, group) for verdict, group in groups.items() if len(group)]


def _rows(task: Evidence, baseline: str) -> pd.DataFrame:
    rows = task.comparisons
    return rows[rows["baseline"] == baseline] if not rows.empty else rows


def _verdict(task: Evidence, baseline: str, verdict: str, group: pd.DataFrame) -> str:
    """One sentence on all arms that share a verdict against ``baseline``."""
    arms = phrasing.listed([f"{row['candidate']} ({evidence_of(task, row)})" for _, row in group.iterrows()])
    are = "is" if len(group) == 1 else "are"
    margin = phrasing.margin(float(group["margin"].iloc[0]), task.metric)
    if verdict == DIFFERS:
        differ = "differs" if len(group) == 1 else "differ"
        return (
            f"In {phrasing.name(task.metric)}, {arms} {differ} from {baseline} on these examples; with one "
            "seed that is no verdict on the "
            "configurations."
        )
    if verdict == ALIKE:
        return (
            f"Within {margin}, {arms} {are} level with {baseline} on these examples; with one seed that is "
            "no verdict on the configurations."
        )
    if verdict == UNRESOLVED:
        remains = "remains" if len(group) == 1 else "remain"
        return (
            f"Against {baseline}, {arms} {remains} unresolved: neither a difference nor equivalence within "
            f"{margin} is shown."
        )
    if verdict == AS_GOOD:
        return f"Within {margin}, {arms} {are} as good as {baseline}."
    return f"In {phrasing.name(task.metric)}, {arms} {are} {verdict} than {baseline}."


def evidence_of(task: Evidence, row: pd.Series) -> str:
    """The test behind a verdict: difference, interval, the deciding p-value, and bytes saved.

    Bytes are omitted for an arm that is worse.
    """
    sentences = [_interval(task, row["difference"], row["low"], row["high"])]
    if not math.isnan(row["seed_low"]):
        sentences.append(f"seeds alone, of {int(row['seeds'])}, [{_range(task, row)}]")
    differs, equal = f"p {_p(row['p_holm'])}", f"equivalence p {_p(row['tost_p_holm'])}"
    sentences += {AS_GOOD: [equal], ALIKE: [equal], UNRESOLVED: [differs, equal]}.get(
        row["verdict"], [differs]
    )
    sentences += [_doubt(row)]
    sentences += [_bytes(task, row)] if row["verdict"] != WORSE else []
    return "; ".join(part for part in sentences if part)


def _interval(task: Evidence, value: float, low: float, high: float) -> str:
    unit = f" {metric_of(task.metric).change_unit}"
    return f"{_change(value, task.metric)}{unit} [{_change(low, task.metric)}, {_change(high, task.metric)}]"


def _range(task: Evidence, row: pd.Series) -> str:
    return f"{_change(row['seed_low'], task.metric)}, {_change(row['seed_high'], task.metric)}"


def _doubt(row: pd.Series) -> str:
    """A remark on a significant difference that is smaller than the equivalence margin."""
    differs = row["verdict"] in (BETTER, WORSE, DIFFERS)
    return "a difference within the margin of equivalence" if row["equivalent"] and differs else ""


def _bytes(task: Evidence, row: pd.Series) -> str:
    size = task.arms.set_index("config")["stored_mib"]
    ratio = float(size[row["candidate"]] / size[row["baseline"]] - 1)
    return (
        f"{abs(100 * ratio):.0f} % {'fewer' if ratio < 0 else 'more'} stored bytes"
        if abs(ratio) >= 0.005
        else ""
    )


def factorial_claims(task: Evidence) -> list[str]:
    """The main effects and the interaction; empty without a factorial."""
    return [_effect(task, row) for _, row in task.factorial.iterrows()]


def _effect(task: Evidence, row: pd.Series) -> str:
    several = not math.isnan(row["seed_low"])
    seeds = f"; seeds alone, of {int(row['seeds'])}, [{_range(task, row)}]" if several else ""
    test = f"({_interval(task, row['estimate'], row['low'], row['high'])}{seeds}; p {_p(row['p_holm'])})"
    resolved = row["verdict"] != UNRESOLVED
    if row["verdict"] == DIFFERS:
        what = _EFFECTS.get(row["effect"], "rank and precision together beyond the sum of both")
        return (
            f"Over the factorial, {what} moves {phrasing.name(task.metric)} on these examples {test}; with "
            "one seed that is no verdict on "
            "the configurations."
        )
    if row["effect"] == "interaction":
        return f"Rank and precision {'interact' if resolved else 'show no resolved interaction'} {test}."
    what = _EFFECTS[row["effect"]]
    if not resolved:
        return f"Over the factorial, no effect of {what} on {phrasing.name(task.metric)} is resolved {test}."
    better = (row["estimate"] > 0) == task.higher_is_better
    return (
        f"Over the factorial, {what} makes {phrasing.name(task.metric)} {'better' if better else 'worse'} "
        f"{test}."
    )


def _front(task: Evidence) -> list[str]:
    """Arms on the front and arms whose membership is unresolved, with their share of resamples on it."""
    if len(task.front) < 2:
        return []
    sentences = []
    for word, stand in ((ON, "surely"), (OPEN, "perhaps")):
        rows = task.front[task.front["membership"] == word]
        names = phrasing.listed([f"{row.config} ({row.probability:.2f})" for row in rows.itertuples()])
        if names:
            sentences.append(f"{stand} {names}")
    over = "examples and seeds" if task.seeds > 1 else "the examples of one seed"
    return [
        f"On the front of stored bytes and {phrasing.name(task.metric)}: {'; '.join(sentences)}. "
        f"In brackets is the share of resamples of {over} "
        "that keep the arm there; surely stands for 0.95 and more."
    ]


def _power(task: Evidence) -> list[str]:
    """The difference that this test set can detect, and whether equivalence can be shown."""
    rows = task.comparisons
    if rows.empty or rows["detectable"].isna().all():
        return []
    size = (
        f"{abs(phrasing.change(float(rows['detectable'].median()), task.metric)):.1f} "
        f"{phrasing.unit(task.metric)}"
    )
    found = (
        f"The {phrasing.whole(rows['n'].iloc[0])} {_examples(task)} show a difference of {size} four times "
        "in five"
    )
    between = "between these trained models, " if (rows["seeds"] == 1).all() else ""
    seen = f"{found} ({between}median over the comparisons, before correction)."
    return [seen, *_reach(task, rows)]


def _reach(task: Evidence, rows: pd.DataFrame) -> list[str]:
    """A sentence if equivalence could not be shown for some pair even at a difference of 0."""
    out = rows[rows["tost_best_p"] >= ALPHA]
    margin = phrasing.margin(float(rows["margin"].iloc[0]), task.metric)
    if out.empty:
        return []
    which = "every comparison" if len(out) == len(rows) else f"{len(out)} of the {len(rows)} comparisons"
    least = phrasing.p_value(float(out["tost_best_p"].min()))
    return [
        f"For {which}, equivalence within {margin} was out of reach of this test set: the arms disagree so "
        "often that even equal quality "
        f"would give the equivalence test a p of {least} or more."
    ]


def seed_claims(task: Evidence) -> list[str]:
    """The sources of variation that the number of seeds covers; empty without a comparison."""
    if task.comparisons.empty:
        return []
    counts = sorted({int(count) for count in task.comparisons["seeds"]})
    if counts == [1]:
        return [ONE_SEED]
    some = " Pairs with one seed have tests and intervals over examples alone." if counts[0] == 1 else ""
    several = phrasing.listed([str(count) for count in counts if count > 1])
    return [
        f"With {several} seeds, tests and intervals hold both sources of variation, examples and seeds; the "
        "spread over seeds is "
        f"estimated from all arms together.{some}"
    ]


def headline(evidence: Sequence[Evidence]) -> list[str]:
    """Sentences of the abstract: every verdict by name, without numbers.

    Tasks without a comparison are omitted.
    """
    return [
        _short(task, baseline) for task in evidence for baseline in BASELINES if len(_rows(task, baseline))
    ]


def _short(task: Evidence, baseline: str) -> str:
    rows = _rows(task, baseline)
    groups = {verdict: list(rows.loc[rows["verdict"] == verdict, "candidate"]) for verdict in VERDICTS}
    sentences = [f"{verdict} for {phrasing.listed(names)}" for verdict, names in groups.items() if names]
    where = (
        f"{task.task} ({phrasing.name(task.metric)}, {phrasing.whole(task.arms['n'].iloc[0])} "
        f"{_examples(task)})"
    )
    return f"Against {baseline} on {where}, the verdict is {'; '.join(sentences)}."


def answer(evidence: Sequence[Evidence], joint: Sequence[str]) -> list[str]:
    """The answer to the study's question whether joint arms win: one sentence per baseline.

    ``joint`` are the arms that choose bits and rank together. A sentence counts and lists the comparisons of
    each verdict.
    """
    return [sentence for baseline in BASELINES for sentence in _answer(evidence, joint, baseline)]


def planned_answer(evidence: Sequence[Evidence]) -> list[str]:
    """The answer for planned arms over all tasks: the sentence of each arm and task."""
    return [sentence for task in evidence for sentence in planned_sentences(task, costs=False)]


def _answer(evidence: Sequence[Evidence], joint: Sequence[str], baseline: str) -> list[str]:
    pairs = [
        (task, row)
        for task in evidence
        for _, row in _rows(task, baseline).iterrows()
        if row["candidate"] in joint
    ]
    if not pairs:
        return []
    by_verdict = {
        v: [f"{row['candidate']} on {task.task}" for task, row in pairs if row["verdict"] == v]
        for v in VERDICTS
    }
    sentences = [
        f"{verdict} in {len(names)} ({phrasing.listed(names)})"
        for verdict, names in by_verdict.items()
        if names
    ]
    tests = phrasing.count(len(pairs), "comparison")
    return [f"Of the {tests} of a joint arm with {baseline}, the verdict is {phrasing.listed(sentences)}."]


def _examples(task: Evidence) -> str:
    return f"test {metric_of(task.metric).examples_name}"


def _change(value: float, metric: str) -> str:
    return phrasing.signed(phrasing.change(float(value), metric), 2)


def _p(p: float) -> str:
    text = phrasing.p_value(float(p))
    return text if text.startswith("<") else f"= {text}"
