"""Findings of a report, as plain texts to be kept: verdicts, plans, surprises and failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.report.model import Report, Section
from bitrank_analysis.report.verdict import verdict
from bitrank_analysis.statistics.verdicts import BETTER, DIFFERS, WORSE
from bitrank_analysis.study import Study


@dataclass(frozen=True)
class Finding:
    """``text`` is Markdown: paragraphs and tables, separated by empty lines.

    ``kind`` is verdict, plan, surprise or failure. ``specs`` are the spec ids of the runs that the finding is
    about, ``links`` the addresses of their pages in MLflow.
    """

    kind: str
    title: str
    text: str
    task: str
    configs: tuple[str, ...]
    specs: tuple[str, ...]
    links: tuple[str, ...]


def findings(study: Study, report: Report) -> list[Finding]:
    """Findings of ``report``, made from ``study``: verdicts, plans and surprises per task; failed runs."""
    specs = dict(study.database.sql("SELECT run_id, value FROM tags WHERE key = 'spec_id'").fetchall())
    found = [one for section in report.sections for one in _of_section(section, report, specs)]
    return [*found, *_failures(study)]


def _of_section(section: Section, report: Report, specs: dict[str, str]) -> Iterator[Finding]:
    task = section.evidence
    yield _finding(
        "verdict", f"Verdicts on {task.task}", _verdict_text(section), task, task.runs, report, specs
    )
    for name in task.planned:
        runs = task.runs[task.runs["config"] == name]
        text = _plan_text(task, name, runs)
        yield _finding("plan", f"Plan of {name} for {task.task}", text, task, runs, report, specs)
    surprises = [*section.warnings[1:], *dominated(task)]  # the first warning states the chance level
    if surprises:
        text = "\n\n".join(surprises)
        yield _finding("surprise", f"Surprises on {task.task}", text, task, task.runs, report, specs)


def _finding(
    kind: str,
    title: str,
    text: str,
    task: Evidence,
    runs: pd.DataFrame,
    report: Report,
    specs: dict[str, str],
) -> Finding:
    names = set(runs["run_name"])
    return Finding(
        kind=kind,
        title=title,
        text=text,
        task=task.task,
        configs=tuple(dict.fromkeys(runs["config"])),
        specs=tuple(specs.get(run_id, "") for run_id in runs["run_id"]),
        links=tuple(run.address for run in report.runs if run.name in names),
    )


def _verdict_text(section: Section) -> str:
    table = section.table("arms")
    return "\n\n".join([*verdict([section.evidence]), *([table.markdown().rstrip()] if table else [])])


def _plan_text(task: Evidence, name: str, runs: pd.DataFrame) -> str:
    """Formats, ranks, bytes and quality of the plan ``name``, averaged over its runs."""
    row = task.arms.set_index("config").loc[name]
    plan = task.plans[(task.plans["config"] == name) & (task.plans["seed"] == runs["seed"].iloc[0])]
    formats = ", ".join(f"{count} × {text}" for text, count in plan["format"].value_counts().items())
    counts = plan.loc[plan["rank"].fillna(0) > 0, "rank"].astype(int).value_counts()
    ranks = ", ".join(f"{count} × {rank}" for rank, count in counts.sort_index().items())
    quality = phrasing.quality(float(row["quality"]), task.metric)
    return "\n\n".join(
        [
            f"On {task.task}, the planner of {name} chose {row['bits']:.2f} bits per parameter with the "
            f"formats {formats or 'not recorded'}, and the ranks {ranks or 'not recorded'} "
            "(matrices × rank).",
            f"{name} ended at {quality} {phrasing.name(task.metric)} in {row['stored_mib']:.1f} MiB with "
            f"adapters, over {phrasing.count(int(row['seeds']), 'seed')}.",
        ]
    )


def dominated(task: Evidence) -> list[str]:
    """A sentence for each significant pair in which the arm with more stored bytes is the worse one."""
    rows = task.comparisons
    if rows.empty:
        return []
    stored = task.arms.set_index("config")["stored_mib"]
    found = []
    for row in rows[rows["verdict"].isin([BETTER, WORSE, DIFFERS])].itertuples():
        gain = row.difference if task.higher_is_better else -row.difference
        better, worse = (row.candidate, row.baseline) if gain > 0 else (row.baseline, row.candidate)
        saved = 1 - stored[better] / stored[worse]
        if saved > 0.005:
            change = abs(phrasing.change(float(row.difference), task.metric))
            found.append(
                f"On {task.task}, {better} is better than {worse} by {change:.2f} "
                f"{phrasing.unit(task.metric)} in {100 * saved:.0f} % fewer stored bytes"
                f"{' (one seed)' if row.verdict == DIFFERS else ''}."
            )
    return list(dict.fromkeys(found))


def _failures(study: Study) -> list[Finding]:
    """A finding for each cell of the grid whose newest attempt failed, was killed, or diverged."""
    rows = study.missing
    rows = rows[~rows["reason"].str.startswith(("absent", "running", "finished"))] if len(rows) else rows
    return [
        Finding(
            kind="failure",
            title=f"{row.config} on {row.task}, seed {row.seed}: {row.status.lower()}",
            text=f"{row.config} on {row.task}, seed {row.seed}, has no result: {row.reason}",
            task=str(row.task),
            configs=(str(row.config),),
            specs=_specs_of(study, str(row.config), str(row.task), int(row.seed)),
            links=(),
        )
        for row in rows.itertuples()
    ]


def _specs_of(study: Study, config: str, task: str, seed: int) -> tuple[str, ...]:
    parameters: Sequence[str] = (config, task, str(seed))
    query = (
        "SELECT DISTINCT s.value FROM tags s JOIN tags c USING (run_id) JOIN tags t USING (run_id) "
        "JOIN tags n USING (run_id) WHERE s.key = 'spec_id' AND c.key = 'config' AND c.value = ? "
        "AND t.key = 'task' AND t.value = ? AND n.key = 'seed' AND n.value = ? ORDER BY 1"
    )
    return tuple(value for (value,) in study.database.execute(query, parameters).fetchall())
