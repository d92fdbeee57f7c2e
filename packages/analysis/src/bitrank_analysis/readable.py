"""Leave out runs whose predictions cannot be read, so that one damaged file does not stop a report."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from bitrank_analysis.artifacts import read_predictions
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.study import Study


def with_readable_runs(study: Study) -> Study:
    """Move runs without readable predictions from ``runs`` to ``missing``, with the reason.

    If all runs are affected the study is returned unchanged: the later error names the file.
    """
    reasons = without_predictions(study)
    is_damaged = study.runs["run_id"].isin(reasons)
    if not is_damaged.any() or is_damaged.all():
        return study
    damaged = study.runs[is_damaged]
    texts = [f"finished, but {reasons[run_id]}" for run_id in damaged["run_id"]]
    rows = damaged[["config", "task", "seed"]].assign(status="FINISHED", reason=texts)
    missing = pd.concat([study.missing, rows], ignore_index=True)
    return replace(study, runs=study.runs[~is_damaged].reset_index(drop=True), missing=missing)


def without_predictions(study: Study) -> dict[str, str]:
    """The reason of each run of ``study`` whose predictions cannot be read."""
    reasons = {}
    for run_id in study.runs["run_id"]:
        try:
            read_predictions(study.database, run_id)
        except AnalysisError as error:
            reasons[run_id] = str(error)
    return reasons
