"""What a study of planners says: every arm beside a reference at equal bytes, with what it cost to plan and
to train.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.statistics.compare import compare
from bitrank_analysis.statistics.verdicts import BETTER, DIFFERS, WORSE
from bitrank_analysis.store import open_store
from bitrank_analysis.study import Study, load_study
from bitrank_analysis.tables import Table

_MIB = 2**20
_COSTS = ["config", "task", "budget", "planned_bytes", "measuring_s", "choosing_s", "predicted_nats"]

_PAIR = ["candidate", "baseline", "metric", "difference", "low", "high", "p_holm", "verdict"]


def planners_report(store: str, experiment: str, references: Sequence[str], costs: Path, folder: Path) -> str:
    """Write ``report.md`` and a CSV file per task into ``folder``; the report's text.

    ``references`` are configs, one a budget, that the arms of their budget are compared with (those without a
    finished run are left out), ``costs`` the JSON file that tells what each plan took to make. Raises
    :class:`~bitrank_analysis.errors.AnalysisError` as :func:`load_study` does.
    """
    study = load_study(open_store(store), experiment)
    spent = pd.DataFrame(json.loads(costs.read_text()), columns=_COSTS)
    parts = [f"# {experiment}", *study.notes]
    for task in sorted(set(study.runs["task"])):
        here = [
            name for name in references if name in set(study.runs.loc[study.runs["task"] == task, "config"])
        ]
        frame = arms_table(study, task, here, spent)
        frame.to_csv(folder / f"{task}.csv", index=False)
        parts += [f"## {task}", _shown(frame).markdown(), *_sentences(frame, here)]
    text = "\n\n".join(parts) + "\n"
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


def arms_table(study: Study, task: str, references: Sequence[str], spent: pd.DataFrame) -> pd.DataFrame:
    """One row an arm of ``task`` (and reference it is compared with): quality over seeds, bytes, seconds, and
    the paired comparison.

    Arms planned for a reference's budget are one family of tests, and what was planned for none (``budget``
    is NaN) another one. ``difference low high p_holm verdict`` are those of :func:`compare`, arm − reference;
    a reference stands alone with NaN. ``total_s`` is planning and one training together.
    """
    runs = study.runs[study.runs["task"] == task]
    held = _MIB * (runs["model_mib"] + runs["adapter_mib"])
    arms = runs.assign(stored_bytes=held).groupby("config", as_index=False).agg(
        seeds=("seed", "nunique"), quality=("quality", "mean"), zero=("zero", "mean"), stored_bytes=("stored_bytes", "mean"),
        train_s=("seconds", "mean"),
    )  # fmt: skip
    arms = arms.merge(spent[spent["task"] == task].drop(columns="task"), on="config", how="left")
    arms["plan_s"] = arms["measuring_s"].fillna(0.0) + arms["choosing_s"].fillna(0.0)
    arms["total_s"] = arms["plan_s"] + arms["train_s"]
    pairs = _pairs(study, task, references, arms)
    return arms.merge(pairs, left_on="config", right_on="candidate", how="left").drop(columns="candidate").sort_values(
        ["baseline", "quality"], ascending=[True, not bool(runs["higher_is_better"].iloc[0])], na_position="first", ignore_index=True
    )  # fmt: skip


def _pairs(study: Study, task: str, references: Sequence[str], arms: pd.DataFrame) -> pd.DataFrame:
    """Each reference against the arms of its budget, and against those of none."""
    found = []
    for reference in references:
        budget = arms.loc[arms["config"] == reference, "budget"].iloc[0]
        for family in (arms["budget"] == budget, arms["budget"].isna()):
            members = {*arms.loc[family, "config"]} - {reference}
            if members:
                part = study.runs[study.runs["config"].isin([reference, *members])]
                found.append(compare(replace(study, runs=part), task, [reference])[_PAIR])
    return pd.concat(found) if found else pd.DataFrame(columns=_PAIR)


def _shown(frame: pd.DataFrame) -> Table:
    rows = [
        {
            "arm": row.config,
            "against": row.baseline if isinstance(row.baseline, str) else "–",
            "quality": f"{row.quality:.4g}",
            "untrained": f"{row.zero:.4g}",
            "bytes": f"{row.stored_bytes:,.0f}",
            "difference": _difference(row),
            "p (Holm)": f"{row.p_holm:.3g}" if row.p_holm == row.p_holm else "–",
            "verdict": row.verdict if isinstance(row.verdict, str) else "reference",
            "planning s": f"{row.plan_s:.1f}",
            "training s": f"{row.train_s:.0f}",
        }
        for row in frame.itertuples()
    ]
    return Table("planners", "Planners at equal bytes", frame, pd.DataFrame(rows))


def _difference(row: Any) -> str:
    """Points of accuracy, or per cent of perplexity, with its interval."""
    metric = row.metric
    if not isinstance(metric, str):
        return "–"
    value, low, high = (
        phrasing.signed(phrasing.change(float(getattr(row, part)), metric))
        for part in ("difference", "low", "high")
    )
    return f"{value} [{low}, {high}] {phrasing.unit(metric)}"


def _sentences(frame: pd.DataFrame, references: Sequence[str]) -> list[str]:
    """What can be claimed of each reference, from the verdicts alone."""
    sentences = []
    for reference in references:
        rows = frame[frame["baseline"] == reference]
        mine = float(frame.loc[frame["config"] == reference, "stored_bytes"].iloc[0])
        equal, own = rows[rows["budget"].notna()], rows[rows["budget"].isna()]
        if len(equal):
            sentences.append(f"At equal bytes, after Holm, {reference} {_outcome(equal)}.")
        if len(own):
            times = own["stored_bytes"] / mine
            sentences.append(
                f"Beside what was not planned for this budget ({times.min():.1f} to {times.max():.1f} times its bytes) it {_outcome(own)}."
            )
    return sentences


def _outcome(rows: pd.DataFrame) -> str:
    """Counts of won and lost comparisons; with one seed, counts of the arms that differ and on which side
    they are.
    """
    apart = rows[rows["verdict"] == DIFFERS]
    if len(apart):
        ahead = _ahead(apart)
        behind = len(apart) - len(ahead)
        sides = f"ahead of {behind} and behind {len(ahead)}{_named(ahead)}"
        rest = len(rows) - len(apart)
        return f"differs from {len(apart)} of {len(rows)} on the examples of one seed, {sides}; {rest} are not told apart"
    beaten, ahead = rows[rows["verdict"] == WORSE], rows[rows["verdict"] == BETTER]
    rest = len(rows) - len(beaten) - len(ahead)
    return f"beats {len(beaten)} of {len(rows)}, is beaten by {len(ahead)}{_named(ahead)}, and stands unresolved or equivalent with {rest}"


def _ahead(rows: pd.DataFrame) -> pd.DataFrame:
    """The arms whose difference from the reference is on the better side."""
    gain = rows["difference"].where(rows["metric"] == "acc", -rows["difference"])
    return rows[gain > 0]


def _named(rows: pd.DataFrame) -> str:
    return f" ({phrasing.listed(list(rows['config']))})" if len(rows) else ""
