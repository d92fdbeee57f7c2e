"""Report on a study of planners or systems: every arm against a reference of equal bytes, with its costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.figures import save
from bitrank_analysis.figures.difference_bytes import difference_bytes
from bitrank_analysis.files import write_atomically
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.outputs import build_into
from bitrank_analysis.pairable import with_pairable_runs
from bitrank_analysis.planning_costs import Planning, read_planning
from bitrank_analysis.published import Setting, findings_on_claims
from bitrank_analysis.readable import with_readable_runs
from bitrank_analysis.report.earlier import of_older_report
from bitrank_analysis.statistics import arms as quality_of_arms
from bitrank_analysis.statistics.compare import compare
from bitrank_analysis.statistics.examples import load_arms
from bitrank_analysis.statistics.verdicts import BETTER, DIFFERS, WORSE
from bitrank_analysis.store import open_store
from bitrank_analysis.study import ABSENT, Study, load_study
from bitrank_analysis.tables import Table, published

_MIB = 2**20
_PAIR = ["candidate", "baseline", "metric", "difference", "low", "high", "p_holm", "verdict"]


def planners_report(
    store: str,
    experiment: str | None,
    costs: Sequence[Path],
    folder: Path,
    artifacts: Path | None = None,
) -> str:
    """Write ``report.md``, and a CSV file and a figure per task into ``folder``; returns the report's text.

    ``costs`` are the JSON files that `bitrank study` writes, one for each part of the study
    (:mod:`~bitrank_analysis.planning_costs`); ``artifacts`` is that of :func:`~bitrank_analysis.open_store`.
    Raises :class:`~bitrank_analysis.errors.AnalysisError` as :func:`load_study` and :func:`read_planning` do,
    and if the folder cannot be written, or has files of something else with these names.
    """
    planning = read_planning(costs)
    loaded = with_readable_runs(load_study(open_store(store, artifacts), experiment, planning.rates))
    planned, others = _planned(loaded, planning)
    study = with_pairable_runs(planned)
    text = "\n\n".join([f"# {study.experiment}", *study.notes, *others])
    try:
        is_older = of_older_report(folder, study.experiment)
        with build_into(folder, "report of a study", is_older, removes=False) as making:
            finished = set(study.runs["task"])
            absent = {row["task"] for row in planning.left_out}
            for task in sorted(finished | absent | set(planning.costs["task"])):
                of_task = _of_task if task in finished else _without_runs
                text += "\n\n" + "\n\n".join(of_task(study, task, planning, making))
            write_atomically(making / "report.md", text + "\n")
    except OSError as error:
        raise AnalysisError(
            f"expected a folder to write the report to, got {folder}: {error.strerror}; give another"
        ) from error
    return text + "\n"


def _planned(study: Study, planning: Planning) -> tuple[Study, list[str]]:
    """``study`` with the runs of the arms of ``planning`` alone, and a sentence on the others."""
    known = set(zip(planning.costs["config"], planning.costs["task"], strict=True))
    cells = list(zip(study.runs["config"], study.runs["task"], strict=True))
    others = [f"{config} on {task}" for config, task in dict.fromkeys(cells) if (config, task) not in known]
    if len(others) == len(set(cells)):
        raise AnalysisError(
            f"{study.experiment} has no finished run of an arm of the study; give planning.json of the study "
            "that made this store"
        )
    kept = study.runs[[cell in known for cell in cells]].reset_index(drop=True)
    notes = (
        [f"Runs left out because the study did not plan their arms: {', '.join(others)}."] if others else []
    )
    return replace(study, runs=kept), notes


def _of_task(study: Study, task: str, planning: Planning, folder: Path) -> list[str]:
    """Paragraphs on ``task``; its tables and its figure are written into ``folder``."""
    finished = set(study.runs.loc[study.runs["task"] == task, "config"])
    references = [name for name in planning.references if name in finished]
    frame = arms_table(study, task, references, planning.costs)
    write_atomically(folder / f"{task}.csv", frame.to_csv(index=False))
    claims = _claims(study, task)
    write_atomically(folder / f"published-{task}.csv", claims.csv())
    parts = [f"## {task}", _shown(frame, references).markdown(), *planner_sentences(frame, references)]
    parts += _above_budget(frame)
    parts += _untrained(frame)
    parts += _unfinished(study, task, planning)
    parts += [f"### {claims.caption}", claims.markdown()]
    if frame.loc[frame["budget"].notna(), "baseline"].notna().any():
        figure = difference_bytes(frame, task)
        save(figure, folder, ("svg", "png"))
        parts.append(f"![Difference against bytes]({quote(figure.name)}.svg)")
    return parts


def _without_runs(study: Study, task: str, planning: Planning, _folder: Path) -> list[str]:
    """Paragraphs on a task of which no run has finished."""
    return [f"## {task}", "No run has finished.", *_unfinished(study, task, planning)]


def _unfinished(study: Study, task: str, planning: Planning) -> list[str]:
    """Paragraphs on the arms that have no run, and on the runs that have no result."""
    absent = [row for row in planning.left_out if row["task"] == task]
    return [*_left_out(absent), *_without_result(study.missing[study.missing["task"] == task], planning)]


def arms_table(
    study: Study, task: str, references: Sequence[str], planning_costs: pd.DataFrame
) -> pd.DataFrame:
    """One row per arm of ``task`` and reference: quality over seeds, bytes, seconds, and the comparison.

    The arms planned for a reference's budget are one family of tests; arms without a budget (``budget`` is
    NaN) are another. ``difference low high p_holm verdict`` are those of :func:`compare`, arm − reference;
    a reference has one row, with NaN there. ``left_bytes`` is the budget minus the stored bytes at the end of
    training, below 0 if they exceed it. ``quality`` and ``zero`` are the metric's mean over seeds (geometric
    for perplexity). ``total_s`` is the sum of planning, of the runs that chose the
    learning rate, and of one training.
    """
    runs = study.runs[study.runs["task"] == task]
    stored_bytes = _MIB * (runs["model_mib"] + runs["adapter_mib"])
    mean = metric_of(str(runs["metric"].iloc[0])).over_runs
    by_config = runs.assign(stored_bytes=stored_bytes).groupby("config", as_index=False)
    arms = by_config.agg(
        seeds=("seed", "nunique"),
        higher_is_better=("higher_is_better", "first"),
        quality=("quality", mean),
        zero=("zero", mean),
        stored_bytes=("stored_bytes", "mean"),
        train_s=("seconds", "mean"),
    )
    costs = planning_costs[planning_costs["task"] == task].drop(columns="task")
    arms = arms.merge(costs, on="config", how="left")
    arms["plan_s"] = arms["measuring_s"].fillna(0.0) + arms["choosing_s"].fillna(0.0)
    arms["rates_s"] = arms["rates_s"].fillna(0.0)
    arms["total_s"] = arms["plan_s"] + arms["rates_s"] + arms["train_s"]
    arms["left_bytes"] = arms["budget"] - arms["stored_bytes"]
    pairs = _pairs(study, task, references, arms)
    compared = arms.merge(pairs, left_on="config", right_on="candidate", how="left")
    lower_first = not bool(runs["higher_is_better"].iloc[0])
    return compared.drop(columns="candidate").sort_values(
        ["baseline", "quality"], ascending=[True, lower_first], na_position="first", ignore_index=True
    )


def _pairs(study: Study, task: str, references: Sequence[str], arms: pd.DataFrame) -> pd.DataFrame:
    """Compare each reference with the arms of its budget, and with the arms without a budget."""
    found = []
    for reference in references:
        budget = arms.loc[arms["config"] == reference, "budget"].iloc[0]
        for family in (arms["budget"] == budget, arms["budget"].isna()):
            members = {*arms.loc[family, "config"]} - {reference}
            if members:
                part = study.runs[study.runs["config"].isin([reference, *members])]
                found.append(compare(replace(study, runs=part), task, [reference])[_PAIR])
    return pd.concat(found) if found else pd.DataFrame(columns=_PAIR)


def _shown(frame: pd.DataFrame, references: Sequence[str]) -> Table:
    rows = [
        {
            "arm": row.config,
            "against": row.baseline if isinstance(row.baseline, str) else "–",
            "seeds": f"{row.seeds}",
            "quality": f"{row.quality:.4g}",
            "untrained": f"{row.zero:.4g}",
            "bytes": f"{row.stored_bytes:,.0f}",
            "left": f"{row.left_bytes:,.0f}" if row.left_bytes == row.left_bytes else "–",
            "difference": _difference(row),
            "p (Holm)": f"{row.p_holm:.3g}" if row.p_holm == row.p_holm else "–",
            "verdict": row.verdict if isinstance(row.verdict, str) else _uncompared(row.config, references),
            "rate": f"{row.learning_rate:g}" if row.learning_rate == row.learning_rate else "–",
            "planning s": f"{row.plan_s:.1f}",
            "rates s": f"{row.rates_s:.0f}",
            "training s": f"{row.train_s:.0f}",
        }
        for row in frame.itertuples()
    ]
    return Table("planners", "Planners at equal bytes", frame, pd.DataFrame(rows))


def _uncompared(config: str, references: Sequence[str]) -> str:
    return "reference" if config in references else "not compared"


def _claims(study: Study, task: str) -> Table:
    """What was claimed by others, and what the runs of ``task`` show."""
    runs = study.runs[study.runs["task"] == task]
    setting = Setting(str(runs["kind"].iloc[0]), quality_of_arms(study, task))
    found = findings_on_claims(load_arms(study, task), setting)
    return published(found, str(runs["metric"].iloc[0]), task)


def _above_budget(frame: pd.DataFrame) -> list[str]:
    """The arms that end with more bytes than their budget, if there are any."""
    arms = frame.drop_duplicates("config")
    above = [
        f"{row.config} by {-row.left_bytes:,.0f} bytes ({-100 * row.left_bytes / row.budget:.1f} %)"
        for row in arms.itertuples()
        if row.left_bytes < 0
    ]
    if not above:
        return []
    return [
        f"Above the budget at the end: {phrasing.listed(above)}. Before training, an arm that prunes ranks "
        "is counted with its mean rank on every matrix; it may keep more of them on larger matrices."
    ]


def _untrained(frame: pd.DataFrame) -> list[str]:
    """Which arms end ahead of their own untrained model, by the mean over seeds."""
    arms = frame.drop_duplicates("config").dropna(subset=["zero"])
    if arms.empty:
        return []
    gains = arms["quality"] - arms["zero"]
    ahead = gains > 0 if arms["higher_is_better"].iloc[0] else gains < 0
    behind = phrasing.listed(list(arms.loc[~ahead, "config"]))
    rest = f"; not ahead: {behind}" if behind else ""
    return [
        f"{int(ahead.sum())} of {len(arms)} arms end ahead of their own untrained model in the mean over "
        f"seeds{rest}. This is a comparison of means without a test."
    ]


def _left_out(rows: Sequence[dict[str, str]]) -> list[str]:
    """The arms that have no run, with the reason."""
    lines = [f"- {' at '.join(filter(None, (row['arm'], row['budget'])))}: {row['reason']}" for row in rows]
    return ["Not run:", "\n".join(lines)] if lines else []


def _without_result(missing: pd.DataFrame, planning: Planning) -> list[str]:
    """The runs of the study's arms that were attempted and have no result, with the reason."""
    planned = set(zip(planning.costs["config"], planning.costs["task"], strict=True))
    lines = [
        f"- {row.config}, seed {row.seed}: {row.reason}"
        for row in missing.itertuples()
        if (row.config, row.task) in planned and row.status != ABSENT
    ]
    return ["Without a result:", "\n".join(lines)] if lines else []


def _difference(row: Any) -> str:
    """The difference in the unit of the metric, with its interval."""
    metric = row.metric
    if not isinstance(metric, str):
        return "–"
    value, low, high = (
        phrasing.signed(phrasing.change(float(getattr(row, part)), metric))
        for part in ("difference", "low", "high")
    )
    return f"{value} [{low}, {high}] {phrasing.unit(metric)}"


def planner_sentences(frame: pd.DataFrame, references: Sequence[str]) -> list[str]:
    """The claims about each reference, derived from the verdicts.

    ``frame`` is that of :func:`arms_table`.
    """
    sentences = []
    for reference in references:
        rows = frame[frame["baseline"] == reference]
        reference_bytes = float(frame.loc[frame["config"] == reference, "stored_bytes"].iloc[0])
        equal_bytes, unplanned = rows[rows["budget"].notna()], rows[rows["budget"].isna()]
        if len(equal_bytes):
            sentences.append(f"At equal bytes, after Holm, {reference} {_outcome(equal_bytes)}.")
        if len(unplanned):
            ratio = unplanned["stored_bytes"] / reference_bytes
            sentences.append(
                f"Against the arms without a byte budget ({ratio.min():.1f} to {ratio.max():.1f} times "
                f"its bytes) it {_outcome(unplanned)}."
            )
    return sentences


def _outcome(rows: pd.DataFrame) -> str:
    """Counts of better and worse arms; with one seed, of arms that differ, by the difference's sign."""
    different = rows[rows["verdict"] == DIFFERS]
    worse, better = rows[rows["verdict"] == WORSE], rows[rows["verdict"] == BETTER]
    rest = len(rows) - len(different) - len(worse) - len(better)
    if different.empty:
        return (
            f"beats {len(worse)} of {len(rows)}, is beaten by {len(better)}{_named(better)}, "
            f"and is unresolved or equivalent with {rest}"
        )
    ahead = _ahead(different)
    text = (
        f"differs from {len(different)} of {len(rows)} on the examples of one seed, ahead of "
        f"{len(different) - len(ahead)} and behind {len(ahead)}{_named(ahead)}; "
    )
    if len(worse) + len(better):
        text += f"over several seeds it beats {len(worse)} and is beaten by {len(better)}{_named(better)}; "
    return f"{text}for {rest} no difference is shown"


def _ahead(rows: pd.DataFrame) -> pd.DataFrame:
    """The arms whose quality is better than that of the reference, tested or not."""
    higher = rows["metric"].map(lambda key: metric_of(key).higher_is_better).astype(bool)
    return rows[rows["difference"].where(higher, -rows["difference"]) > 0]


def _named(rows: pd.DataFrame) -> str:
    return f" ({phrasing.listed(list(rows['config']))})" if len(rows) else ""
