"""Tables of the paper as LaTeX ``tabular``, grouped by task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.ranks import final_ranks, with_own_ranks
from bitrank_analysis.matrix_names import module_order
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.paper.latex import tabular
from bitrank_analysis.statistics.verdicts import short

Rows = list[list[str]]
# Four columns of wrapped text, for tables of statements and findings.
WORDY_COLUMNS = "".join(
    rf">{{\raggedright\arraybackslash}}p{{{share}\linewidth}}" for share in (0.25, 0.19, 0.19, 0.25)
)
_SETTINGS = {
    "model": "Model", "steps": "Optimizer steps", "epochs": "Epochs", "batch_size": "Batch (sequences)",
    "accumulation": "Accumulation (0: a step is one batch)",
    "learning_rate": "Learning rate", "warmup": "Warm-up (share of steps)", "clip": "Gradient clip",
    "weight_decay": "Weight decay",
    "dropout": "Dropout", "adapter_scale": "Adapter scale at rank 8", "scale_policy": "Scale policy",
    "max_length": "Longest sequence (tokens)",
    "threads": "Threads a run",
}  # fmt: skip


def arms_table(evidence: Sequence[Evidence]) -> str:
    """Table 1: quality and costs of each arm."""
    planned = any(task.planned for task in evidence)
    head = [
        "Arm",
        "Test",
        "95 % interval",
        "Untrained",
        "MiB",
        "Bits",
        "Trained %",
        "Rank",
        "Peak MiB",
        *(["Plan s", "Run s"] if planned else ["Seconds"]),
    ]
    groups = [
        (_heading(task), [_arm(task, row, planned) for row in task.arms.to_dict("records")])
        for task in evidence
    ]
    return tabular("l" + "r" * (len(head) - 1), head, groups)


def _heading(task: Evidence) -> str:
    what = metric_of(task.metric).examples_name
    counts = sorted({int(count) for count in task.arms["seeds"]})
    seeds = phrasing.count(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    return (
        f"{task.task}: {phrasing.name(task.metric)}, {phrasing.whole(task.arms['n'].iloc[0])} {what}, {seeds}"
    )


def _arm(task: Evidence, row: dict[str, Any], planned: bool) -> list[str]:
    quality = {
        key: _text(row[key], lambda value: phrasing.quality(value, task.metric))
        for key in ("quality", "low", "high", "zero")
    }
    costs = [
        ("stored_mib", 1),
        ("bits", 2),
        ("trainable_percent", 2),
        ("rank", 0),
        ("peak_mib", 0),
        *([("plan_s", 0)] if planned else []),
        ("seconds", 0),
    ]
    sentences = [
        _text(row[key], lambda value, digits=digits: f"{value:,.{digits}f}") for key, digits in costs
    ]
    return [
        row["config"],
        quality["quality"],
        f"{quality['low']} to {quality['high']}",
        quality["zero"],
        *sentences,
    ]


def hypotheses_table(evidence: Sequence[Evidence]) -> str:
    """The study's own hypotheses and what each task shows; "" if no task tests one."""
    groups = [
        (
            f"{task.task}, {phrasing.name(task.metric)}",
            [
                [
                    f"{row.hypothesis}. {row.text}",
                    row.compared,
                    row.result,
                    f"{row.finding}: {row.reason}",
                ]
                for row in task.hypotheses.itertuples()
            ],
        )
        for task in evidence
        if not task.hypotheses.empty
    ]
    if not groups:
        return ""
    return tabular(WORDY_COLUMNS, ["Hypothesis", "Compared", "Result", "Finding"], groups)


def comparisons_table(evidence: Sequence[Evidence]) -> str:
    """Table 2: every comparison with its test; "" without comparisons."""
    compared = [task for task in evidence if not task.comparisons.empty]
    if not compared:
        return ""
    several = any((task.comparisons["seeds"] > 1).any() for task in compared)
    head = [
        "Arm",
        "Against",
        "Difference",
        "95 % interval",
        *(["seeds alone"] if several else []),
        "p",
        "p (Holm)",
        "p equal (Holm)",
        "Verdict",
    ]
    groups = [
        (
            f"{task.task}: difference in {phrasing.unit(task.metric)}",
            [_pair(task, row, several) for row in task.comparisons.to_dict("records")],
        )
        for task in compared
    ]
    return tabular(f"llrr{'r' if several else ''}rrrl", head, groups)


def _pair(task: Evidence, row: dict[str, Any], several: bool) -> list[str]:
    seeds = [_interval(task, row["seed_low"], row["seed_high"])] if several else []
    ps = [_text(row[key], phrasing.p_value) for key in ("p", "p_holm", "tost_p_holm")]
    return [
        row["candidate"],
        row["baseline"],
        _change(task, row["difference"]),
        _interval(task, row["low"], row["high"]),
        *seeds,
        *ps,
        short(row["verdict"]),
    ]


def factorial_table(evidence: Sequence[Evidence]) -> str:
    """Table 3: main effects and interaction; "" if no task has all four arms."""
    crossed = [task for task in evidence if not task.factorial.empty]
    if not crossed:
        return ""
    several = any((task.factorial["seeds"] > 1).any() for task in crossed)
    head = [
        "Effect",
        "Estimate",
        "95 % interval",
        *(["seeds alone"] if several else []),
        "p",
        "p (Holm)",
        "Verdict",
    ]
    groups = [
        (
            f"{task.task}: in {phrasing.unit(task.metric)}",
            [_effect(task, row, several) for row in task.factorial.to_dict("records")],
        )
        for task in crossed
    ]
    return tabular(f"lrr{'r' if several else ''}rrl", head, groups)


def _effect(task: Evidence, row: dict[str, Any], several: bool) -> list[str]:
    names = {
        "rank": "rank: adaptive − fixed",
        "precision": "precision: NF4 − 16-bit",
        "interaction": "interaction",
    }
    seeds = [_interval(task, row["seed_low"], row["seed_high"])] if several else []
    ps = [phrasing.p_value(row[key]) for key in ("p", "p_holm")]
    interval = _interval(task, row["low"], row["high"])
    return [
        names[row["effect"]],
        _change(task, row["estimate"]),
        interval,
        *seeds,
        *ps,
        short(row["verdict"]),
    ]


def settings_table(values: dict[str, str], evidence: Sequence[Evidence]) -> str:
    """Settings of the runs, one column per task, from the values under ``spec/<task>/``.

    Returns "" if the runs have no ``spec.json``.
    """
    rows = [
        [label, *(values.get(f"spec/{task.task}/{key}", phrasing.NOTHING) for task in evidence)]
        for key, label in _SETTINGS.items()
    ]
    rows = [row for row in rows if set(row[1:]) - {phrasing.NOTHING}]
    return (
        tabular("l" + "r" * len(evidence), ["", *(task.task for task in evidence)], [("", rows)])
        if rows
        else ""
    )


def ranks_table(task: Evidence) -> str:
    """Appendix A: mean final rank per layer, and its range over matrices; "" without such arms."""
    arms = with_own_ranks(task)
    inside = final_ranks(task).query("config in @arms").dropna(subset=["layer"])
    if inside.empty:
        return ""
    spans = inside.groupby(["layer", "config"])["rank"].agg(["mean", "min", "max"])
    layers = sorted(set(inside["layer"]))
    rows = []
    for layer in layers:
        cells = [_span(spans, (layer, name)) for name in arms]
        rows.append([f"{layer:.0f}", *cells])
    return tabular("r" + "r" * len(arms), ["Layer", *arms], [("", rows)])


def _span(spans: pd.DataFrame, cell: tuple[float, str]) -> str:
    if cell not in spans.index:
        return phrasing.NOTHING
    mean, low, high = spans.loc[cell]
    return f"{mean:.1f} ({low:.0f}–{high:.0f})"


def bits_table(task: Evidence) -> str:
    """Appendix B: format of every layer; "" without plans.

    Consecutive layers of one pattern share a row, and arms of one plan share a group.
    """
    plans = task.plans.drop_duplicates(["config", "matrix"])
    same: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name in task.configs:
        pattern = tuple(_pattern(plans[plans["config"] == name]))
        same.setdefault(pattern, []).append(name)
    groups = [
        (", ".join(names), [list(line) for line in pattern]) for pattern, names in same.items() if pattern
    ]
    return tabular("lp{0.5\\linewidth}", ["Where", "Format"], groups) if groups else ""


def _pattern(plan: pd.DataFrame) -> list[tuple[str, str]]:
    """(where, formats) rows of one arm's plan: outside the layers first, then ranges of equal layers."""
    outside = [
        (str(row.matrix).split(".", 1)[-1], str(row.format))
        for row in plan[plan["layer"].isna()].itertuples()
    ]
    runs: list[tuple[int, int, str]] = []
    for layer, group in plan.dropna(subset=["layer"]).groupby("layer"):
        formats, at = _formats(group), int(str(layer).split(".")[0])
        if runs and runs[-1][2] == formats and runs[-1][1] == at - 1:
            runs[-1] = (runs[-1][0], at, formats)
        else:
            runs.append((at, at, formats))
    inside = [
        (f"layer {first}" if first == last else f"layers {first}–{last}", formats)
        for first, last, formats in runs
    ]
    return [*outside, *inside]


def _formats(layer: pd.DataFrame) -> str:
    groups = {str(text): module_order(group["module"]) for text, group in layer.groupby("format")}
    return (
        next(iter(groups))
        if len(groups) == 1
        else "; ".join(f"{text}: {', '.join(names)}" for text, names in groups.items())
    )


def _text(value: Any, write: Any) -> str:
    return phrasing.NOTHING if value is None or math.isnan(value) else str(write(value))


def _change(task: Evidence, value: float) -> str:
    return phrasing.signed(phrasing.change(value, task.metric), 2)


def _interval(task: Evidence, low: float, high: float) -> str:
    return phrasing.NOTHING if math.isnan(low) else f"{_change(task, low)} to {_change(task, high)}"
