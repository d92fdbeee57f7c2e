"""Leave out runs that cannot be paired with the others of their task, such as those of another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.statistics.examples import RunExamples, examples_of, why_unpaired
from bitrank_analysis.study import Study
from bitrank_analysis.training_settings import EVALUATION, differences


def with_pairable_runs(study: Study) -> Study:
    """Keep, of each task, the largest set of runs that were evaluated on the same examples; name the others.

    Of two equally large sets, the one with the newest run is kept. The others move from ``runs`` to
    ``missing``, with the reason, and a note says with which settings they were evaluated.
    """
    reasons: dict[str, str] = {}
    for _, runs in study.runs.groupby("task"):
        reasons |= _unpaired(study, runs)
    if not reasons:
        return study
    is_apart = study.runs["run_id"].isin(reasons)
    apart = study.runs[is_apart]
    texts = [f"finished, but evaluated {reasons[run_id]}" for run_id in apart["run_id"]]
    rows = apart[["config", "task", "seed"]].assign(status="FINISHED", reason=texts)
    named = [f"{run.run_name}, {reasons[run.run_id]}" for run in apart.itertuples()]
    note = (
        "Runs left out because they cannot be paired with the other runs of their task: "
        f"{'; '.join(named)}. To compare such runs, keep all that have these settings, and their references, "
        "in a store of their own (--store FOLDER)."
    )
    return replace(
        study,
        runs=study.runs[~is_apart].reset_index(drop=True),
        missing=pd.concat([study.missing, rows], ignore_index=True),
        notes=(*study.notes, note),
    )


def _unpaired(study: Study, runs: pd.DataFrame) -> dict[str, str]:
    """run_id → how it was evaluated, of each run of one task that the usual ones cannot be paired with."""
    sets = _sets(study, runs.to_dict("records"))
    if len(sets) < 2:
        return {}
    began = dict(study.database.sql("SELECT run_id, started FROM runs").fetchall())
    usual = max(sets, key=lambda members: (len(members), max(began[run_id] for run_id in members)))
    apart = [run_id for members in sets if members is not usual for run_id in members]
    settings = differences(study.database, usual[0], apart, EVALUATION)
    return {
        run_id: f"with {settings[run_id]}" if settings[run_id] else "on other examples" for run_id in apart
    }


def _sets(study: Study, runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Ids of the runs of one task, in sets of which all can be paired."""
    found: list[tuple[RunExamples, list[str]]] = []
    for run in runs:
        try:
            own = examples_of(study, run)
        except AnalysisError:
            # The statistics name the fault of predictions that cannot be used.
            return []
        for first, members in found:
            if not why_unpaired(first, own):
                members.append(run["run_id"])
                break
        else:
            found.append((own, [run["run_id"]]))
    return [members for _, members in found]
