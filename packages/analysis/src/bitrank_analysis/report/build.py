"""From the store to a folder: one page, the same as plain text, figures and tables as files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import gather
from bitrank_analysis.figures import draw_all, save
from bitrank_analysis.report import facts
from bitrank_analysis.report.model import Report, Section
from bitrank_analysis.report.side_by_side import side_by_side
from bitrank_analysis.report.verdict import verdict
from bitrank_analysis.store import open_store
from bitrank_analysis.study import Study, load_study
from bitrank_analysis.tables import tables

UI_URL = "http://127.0.0.1:5000"


def write_report(
    store_uri: str, out_folder: Path | str, experiment: str | None = None, ui_url: str | None = None
) -> Path:
    """Collect and write in one step; the path of the page.

    ``experiment`` may be left out when the store holds one. ``ui_url`` is where the MLflow UI answers, for
    the links to runs. Raises :class:`AnalysisError` when there is nothing to report, or no place to write.
    """
    return write(collect(load_study(open_store(store_uri), experiment), ui_url or UI_URL), out_folder)


def write(report: Report, out_folder: Path | str) -> Path:
    """Write ``report.html report.md figures/ tables/`` into ``out_folder``; the path of the page.

    Figures and tables of an earlier report in the folder are replaced. Raises :class:`AnalysisError` when it
    cannot be written to.
    """
    from bitrank_analysis.report.page import page
    from bitrank_analysis.report.plain import plain

    folder = Path(out_folder)
    try:
        _empty_folder(folder)
        for section in report.sections:
            for figure in section.figures:
                save(figure, folder / "figures")
            for table in section.tables:
                table.save(folder / "tables")
        (folder / "report.md").write_text(plain(report), encoding="utf-8")
        (folder / "report.html").write_text(page(report), encoding="utf-8")
    except OSError as error:
        raise AnalysisError(
            f"expected a folder to write the report to, got {folder}: {error.strerror}; give another"
        ) from error
    return folder / "report.html"


def collect(study: Study, ui_url: str = UI_URL) -> Report:
    """Everything worked out, nothing written. Raises :class:`AnalysisError` when no run has finished."""
    if study.runs.empty:
        reasons = "; ".join(facts.not_run(study)[:3])
        raise AnalysisError(
            f"expected a finished run in {study.experiment}, got none ({reasons}); run `make matrix` first"
        )
    study = _without_torn(study)
    evidence = [gather(study, str(task)) for task in sorted(study.runs["task"].unique())]
    sections, refused = [], {}
    for task in evidence:
        drawn, refused[task.task] = draw_all(task)
        sections.append(
            Section(task, drawn, tables(task), side_by_side(study, task), facts.warnings(study, task.task))
        )
    missing, gaps = facts.not_run(study), facts.gaps(study, evidence, refused)
    return Report(
        study.experiment,
        verdict(evidence),
        sections,
        facts.run_links(study, ui_url),
        facts.machine(study),
        missing,
        gaps,
        facts.notice(study),
    )


def _without_torn(study: Study) -> Study:
    """The study without the runs whose predictions are torn, which then count as not run, with the reason.

    When no other run is left, the study itself: its error names the file.
    """
    torn = study.database.sql(
        "SELECT run_id, reason FROM unread WHERE file = 'predictions.parquet'"
    ).fetchall()
    reasons = dict(torn)
    is_torn = study.runs["run_id"].isin(reasons)
    if not is_torn.any() or is_torn.all():
        return study
    lost = study.runs[is_torn]
    rows = lost[["config", "task", "seed"]].assign(
        status="FINISHED",
        reason=[
            f"finished, but its predictions.parquet cannot be read: {reasons[run_id]}"
            for run_id in lost["run_id"]
        ],
    )
    missing = pd.concat([study.missing, rows], ignore_index=True)
    return replace(study, runs=study.runs[~is_torn].reset_index(drop=True), missing=missing)


def _empty_folder(folder: Path) -> None:
    """Make the folder; figures and tables of an earlier report go, so that none outlives its task."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("figures", "tables"):
        shutil.rmtree(folder / name, ignore_errors=True)
