"""Build the report and write it to a folder: HTML page, Markdown text, figures and tables as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitrank_analysis.budget_curves import BudgetCurve
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence, gather
from bitrank_analysis.figures import Figure, budget_frontier, draw_all, save
from bitrank_analysis.files import write_atomically
from bitrank_analysis.outputs import build_into
from bitrank_analysis.pairable import with_pairable_runs
from bitrank_analysis.readable import with_readable_runs
from bitrank_analysis.report import facts
from bitrank_analysis.report.earlier import of_older_report
from bitrank_analysis.report.model import Report, Section
from bitrank_analysis.report.side_by_side import side_by_side
from bitrank_analysis.report.verdict import verdict
from bitrank_analysis.store import open_store
from bitrank_analysis.study import Study, load_study
from bitrank_analysis.tables import tables

UI_URL = "http://127.0.0.1:5000"


def write_report(
    store_uri: str,
    out_folder: Path | str,
    experiment: str | None = None,
    ui_url: str | None = None,
    artifacts: Path | None = None,
) -> Path:
    """Collect and write in one step; returns the path of the page.

    ``experiment`` is optional if the store has only one. ``ui_url`` is the address of the MLflow UI, for
    links to runs; ``artifacts`` that of :func:`~bitrank_analysis.open_store`. Raises :class:`AnalysisError`
    if there is no finished run or the folder is not writable.
    """
    study = load_study(open_store(store_uri, artifacts), experiment)
    return write(collect(study, ui_url or UI_URL), out_folder)


def write(report: Report, out_folder: Path | str) -> Path:
    """Write ``report.html report.md figures/ tables/`` into ``out_folder``; returns the path of the page.

    An earlier report in the folder is replaced; other files are neither replaced nor removed, and a failed
    build leaves the earlier report as it was. Raises :class:`AnalysisError` if the folder is not writable, or
    has files of something else with these names.
    """
    from bitrank_analysis.report.page import page
    from bitrank_analysis.report.plain import plain

    folder = Path(out_folder)
    try:
        with build_into(folder, "report", of_older_report(folder, report.experiment)) as making:
            for section in report.sections:
                for figure in section.figures:
                    save(figure, making / "figures")
                for table in section.tables:
                    table.save(making / "tables")
            write_atomically(making / "report.md", plain(report))
            write_atomically(making / "report.html", page(report))
    except OSError as error:
        raise AnalysisError(
            f"expected a folder to write the report to, got {folder}: {error.strerror}; choose another"
        ) from error
    return folder / "report.html"


def collect(study: Study, ui_url: str = UI_URL, curves: Sequence[BudgetCurve] = ()) -> Report:
    """Compute the report without writing files.

    ``curves`` of a task and of the model of its runs are drawn with the arms of the task. Raises
    :class:`AnalysisError` if no run has finished.
    """
    if study.runs.empty:
        reasons = "; ".join(facts.not_run(study)[:3])
        raise AnalysisError(
            f"expected a finished run in {study.experiment}, got none ({reasons}); run `make matrix` first"
        )
    study = with_pairable_runs(with_readable_runs(study))
    evidence = [gather(study, str(task)) for task in sorted(study.runs["task"].unique())]
    sections, refused = [], {}
    for task in evidence:
        drawn, refused[task.task] = draw_all(task)
        figures = [*_frontier(task, curves), *drawn]
        sections.append(
            Section(task, figures, tables(task), side_by_side(study, task), facts.warnings(study, task.task))
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


def _frontier(task: Evidence, curves: Sequence[BudgetCurve]) -> list[Figure]:
    """The frontier of budgets of ``task``; empty without a curve for the model of its runs."""
    fitting = [curve for curve in curves if curve.is_of(task.task, list(task.runs["model"]))]
    return [budget_frontier(task, fitting)] if fitting else []
