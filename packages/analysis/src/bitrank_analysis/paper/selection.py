"""Which runs of the store are the paper's, and what has to be said about those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import config_order
from bitrank_analysis.statistics.chance import at_chance
from bitrank_analysis.study import Study


def select(study: Study, configs: Sequence[str]) -> Study:
    """The study with these arms alone, so that a trial in the same store does not enter tables or families of tests.

    Its notes are the sentences of :func:`remarks`. Raises :class:`AnalysisError` when no run of these arms has finished.
    """
    runs = study.runs[study.runs["config"].isin(configs)].reset_index(drop=True)
    if runs.empty:
        raise AnalysisError(
            f"expected finished runs of {', '.join(configs)} in {study.experiment}, got none of them; run `make matrix` first"
        )
    missing = study.missing[study.missing["config"].isin(configs)].reset_index(drop=True)
    chosen = replace(study, runs=runs, missing=missing, notes=())
    return replace(chosen, notes=tuple(remarks(chosen, study)))


def remarks(chosen: Study, whole: Study) -> list[str]:
    """What a reader must know of the runs behind the paper: arms left out, cells without a result, doubled runs, settings, code."""
    strangers = config_order(set(whole.runs["config"]) - set(chosen.runs["config"]))
    absent = [
        f"{row.config} on {row.task}, seed {row.seed} ({row.reason})" for row in chosen.missing.itertuples()
    ]
    odd = [f"{row.run_name} ({row.settings})" for row in chosen.runs.itertuples() if row.settings]
    older = list(chosen.runs.loc[chosen.runs["stale"], "run_name"])
    doubled = _doubled(chosen)
    text = {
        f"The store also holds runs of {phrasing.listed(strangers)}, which are no arms of this study and enter nowhere.": len(
            strangers
        ),
        f"Without a result: {'; '.join(absent)}.": len(absent),
        f"{phrasing.count(doubled, 'further finished run')} gave way to another of the same arm, task and seed: the one with the usual "
        "settings or, among equals, the newest counts.": doubled,
        f"Trained with other settings than most runs of their task: {'; '.join(odd)}.": len(odd),
        f"Made by other code than the newest runs: {', '.join(older)}.": len(older),
    }
    return [*(sentence for sentence, holds in text.items() if holds), *at_chance(chosen)]


def _doubled(chosen: Study) -> int:
    """Finished runs of the same arms that gave way to another of their cell."""
    sql = (
        "SELECT r.run_id, any_value(value) FILTER (key = 'config') AS config FROM runs r JOIN tags USING (run_id) "
        "WHERE experiment = ? AND status = 'FINISHED' GROUP BY r.run_id"
    )
    finished = chosen.database.execute(sql, [chosen.experiment]).fetchall()
    used = set(chosen.runs["run_id"])
    return sum(config in set(chosen.runs["config"]) and run_id not in used for run_id, config in finished)
