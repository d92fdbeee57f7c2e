"""The table of published claims: findings of the paper's runs, completed by those of other studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.paper.latex import Source, escape, tabular
from bitrank_analysis.paper.tables import WORDY_COLUMNS
from bitrank_analysis.published import COLUMNS, NOT_TESTED, REPORTED, compared_text, result_text

Findings = Mapping[str, pd.DataFrame]  # by task, as findings_on_claims makes them
_PREFIX = "published-"
STUDIES_NOTE = (
    "Arms that are named with their budget, and tasks without runs of this paper, are those of other "
    "studies, whose steps and learning rates differ from those here."
)


def read_published(folders: Sequence[Path]) -> Findings:
    """The findings of each task of studies, from the files ``published-<task>.csv`` of their results folders.

    Raises :class:`AnalysisError` for a folder without such a file, and for a task that two folders have.
    """
    found: dict[str, pd.DataFrame] = {}
    for folder in folders:
        read = {path: pd.read_csv(path) for path in sorted(folder.glob(f"{_PREFIX}*.csv"))}
        tasks = {
            path.stem.removeprefix(_PREFIX): frame
            for path, frame in read.items()
            if list(frame.columns) == COLUMNS and not frame.empty
        }
        if not tasks:
            raise AnalysisError(
                f"expected findings on published claims in {folder} (published-<task>.csv with the columns "
                f"{', '.join(COLUMNS)}), found none; give the results folder of a study of this version"
            )
        if twice := found.keys() & tasks.keys():
            raise AnalysisError(f"{min(twice)} is a task of two studies; give one folder for each task")
        found |= tasks
    return found


def published_table(evidence: Sequence[Evidence], studies: Findings) -> str:
    """What others claimed and what the runs show, by task; "" without a finding.

    A claim that the paper's runs do not test has the findings of ``studies`` on the same task. Of tasks that
    only studies have, tested claims are shown.
    """
    own = {task.task: task.published for task in evidence if not task.published.empty}
    tasks = {
        name: _completed(frame, studies[name]) if name in studies else frame for name, frame in own.items()
    }
    for name in sorted(studies.keys() - {task.task for task in evidence}):
        tasks[name] = studies[name][studies[name]["finding"] != NOT_TESTED]
    groups = [
        (_heading(name, frame), [_claim(row) for row in frame.itertuples()])
        for name, frame in tasks.items()
        if not frame.empty
    ]
    if not groups:
        return ""
    return tabular(WORDY_COLUMNS, ["Claim", "Compared", "Result", "Finding"], groups)


def _completed(own: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """``own``, with the rows of ``study`` for the claims that it does not test.

    If the study does not test them either, its reason is kept: it has runs of more arms.
    """
    replaced = (own["finding"] == NOT_TESTED) & own["claim"].isin(study["claim"])
    added = study[study["claim"].isin(own.loc[replaced, "claim"])]
    order = {claim: place for place, claim in enumerate(own["claim"])}
    return pd.concat([own[~replaced], added]).sort_values(
        "claim", key=lambda texts: texts.map(order), kind="stable", ignore_index=True
    )


def _heading(task: str, frame: pd.DataFrame) -> str:
    return f"{task}, {phrasing.name(str(frame['metric'].iloc[0]))}"


def _claim(row: Any) -> list[str]:
    cited = f"\\citep{{{row.citation}}}"
    if row.source.startswith(REPORTED):
        cited = f"({REPORTED} \\citealp{{{row.citation}}})"
    claim = Source(f"{escape(row.claim)} {cited}")
    return [claim, compared_text(row), result_text(row, row.metric), f"{row.finding}: {row.reason}"]
