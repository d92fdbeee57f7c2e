"""Facts for judging a report: links to runs, machine and versions, missing runs, missing figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.statistics.chance import at_chance, chance_level, how_reached
from bitrank_analysis.study import Study


@dataclass(frozen=True)
class RunLink:
    """One run and the address of its page in the MLflow UI."""

    name: str
    config: str
    task: str
    seed: int
    quality: str
    seconds: str
    code: str
    address: str


def run_links(study: Study, ui_url: str) -> list[RunLink]:
    """A link for every run in the report."""
    experiments = dict(study.database.sql("SELECT run_id, experiment_id FROM raw.runs").fetchall())
    base = ui_url.rstrip("/")
    return [
        RunLink(
            name=row.run_name,
            config=row.config,
            task=row.task,
            seed=row.seed,
            quality=phrasing.quality(row.quality, row.metric),
            seconds=phrasing.whole(row.seconds),
            code=row.code,
            address=f"{base}/#/experiments/{experiments[row.run_id]}/runs/{row.run_id}",
        )
        for row in study.runs.itertuples()
    ]


def machine(study: Study) -> list[tuple[str, str]]:
    """Label and value of machine, libraries and code; with several values if runs differ."""
    ids = pd.DataFrame({"run_id": study.runs["run_id"]})
    tags = study.database.sql("SELECT run_id, key, value FROM tags").df().merge(ids, on="run_id")
    values = {str(key): sorted(set(group["value"]) - {""}) for key, group in tags.groupby("key")}
    keys = [
        "hardware",
        "device",
        "threads",
        "dtype",
        "model",
        "profile",
        "git_commit",
        "code",
        "dirty",
        "stored_as",
    ]
    versions = sorted(key for key in values if key.startswith("version."))
    labels = {
        "git_commit": "commit",
        "code": "code id",
        "dirty": "uncommitted changes",
        "stored_as": "formats and libraries",
    }
    return [
        (labels.get(key, key.removeprefix("version.")), "; ".join(values[key]))
        for key in [*keys, *versions]
        if values.get(key)
    ]


def not_run(study: Study) -> list[str]:
    """One line for each cell of the grid without a result."""
    return [
        f"{row.config} on {row.task}, seed {row.seed}: {row.reason}" for row in study.missing.itertuples()
    ]


def notice(study: Study) -> str:
    """A warning at the top of the report; "" if there is none."""
    found = study.database.sql("SELECT run_id, value FROM tags WHERE key = 'profile'").fetchall()
    # The profile of a study with the profile smoke has both names, as in "systems-smoke".
    profiles = {run_id: name.split("-") for run_id, name in found}
    if not any("smoke" in profiles.get(run_id, ()) for run_id in study.runs["run_id"]):
        return ""
    return (
        "Profile smoke: tiny random models on toy text. "
        "The numbers on this page mean nothing; they show that the program works."
    )


def warnings(study: Study, task: str) -> list[str]:
    """Chance level of a task and its collapsed runs, printed above its result."""
    share = chance_level(study, task)
    if share is None:
        return []
    level = f"Chance level: {how_reached(study, task)} is right in {100 * share:.1f} % of the test examples."
    return [level, *at_chance(study, task=task)]


def gaps(study: Study, evidence: Sequence[Evidence], refused: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Reasons for missing frames and figures and unreadable files, and the notes of study and statistics."""
    sentences = [f"{task.task}, {name}: {reason}" for task in evidence for name, reason in task.gaps.items()]
    sentences += [
        f"{task}, figure {name}: {reason}"
        for task, figures in refused.items()
        for name, reason in figures.items()
    ]
    unread = study.database.sql("SELECT run_id, file, reason FROM unread").df()
    unread = unread.merge(study.runs[["run_id", "run_name"]], on="run_id")
    sentences += [f"{row.run_name}, {row.file}: {row.reason}" for row in unread.itertuples()]
    sentences += study.notes
    sentences += [note for task in evidence for note in task.notes]
    return list(dict.fromkeys(sentences))
