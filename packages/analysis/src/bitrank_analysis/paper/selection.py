"""Selection of the paper's runs from the store, and remarks on the runs left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import config_order
from bitrank_analysis.statistics.chance import at_chance
from bitrank_analysis.study import Study


def select(study: Study, configs: Sequence[str]) -> Study:
    """Return the study restricted to ``configs``, so that other runs enter no table or family of tests.

    The notes of the result are the sentences of :func:`remarks`. Raises :class:`AnalysisError` if no run of
    these arms has finished.
    """
    runs = study.runs[study.runs["config"].isin(configs)].reset_index(drop=True)
    if runs.empty:
        raise AnalysisError(
            f"expected finished runs of {', '.join(configs)} in {study.experiment}, got none of them; run "
            "`make matrix` first"
        )
    missing = study.missing[study.missing["config"].isin(configs)].reset_index(drop=True)
    chosen = replace(study, runs=runs, missing=missing, notes=())
    return replace(chosen, notes=tuple(remarks(chosen, study)))


def remarks(chosen: Study, whole: Study) -> list[str]:
    """Remarks on the runs behind the paper, for its readers.

    They list arms left out, cells without a result, duplicate runs, other settings, other code, and runs at
    chance level.
    """
    strangers = config_order(set(whole.runs["config"]) - set(chosen.runs["config"]))
    absent = [
        f"{row.config} on {row.task}, seed {row.seed} ({row.reason})" for row in chosen.missing.itertuples()
    ]
    odd = [f"{row.run_name} ({row.settings})" for row in chosen.runs.itertuples() if row.settings]
    older = list(chosen.runs.loc[chosen.runs["stale"], "run_name"])
    duplicates = _count_duplicates(chosen)
    text = {
        f"The store also holds runs of {phrasing.listed(strangers)}, "
        "which are no arms of this study and enter nowhere.": len(strangers),
        f"Without a result: {'; '.join(absent)}.": len(absent),
        f"{phrasing.count(duplicates, 'further finished run')} gave way to another of the same arm, task and "
        "seed: the one with the usual "
        "settings or, among equals, the newest counts.": duplicates,
        f"Trained with other settings than most runs of their task: {'; '.join(odd)}.": len(odd),
        f"Made by other code than the newest runs: {', '.join(older)}.": len(older),
    }
    return [*(sentence for sentence, holds in text.items() if holds), *at_chance(chosen)]


def _count_duplicates(chosen: Study) -> int:
    """Number of finished runs of these arms that another run of the same cell replaced."""
    sql = (
        "SELECT r.run_id, any_value(value) FILTER (key = 'config') AS config FROM runs r JOIN tags USING "
        "(run_id) "
        "WHERE experiment = ? AND status = 'FINISHED' GROUP BY r.run_id"
    )
    finished = chosen.database.execute(sql, [chosen.experiment]).fetchall()
    used = set(chosen.runs["run_id"])
    return sum(config in set(chosen.runs["config"]) and run_id not in used for run_id, config in finished)
