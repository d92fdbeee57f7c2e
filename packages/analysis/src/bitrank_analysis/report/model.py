"""The report as data: one section per task, and parts that concern all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures import Figure
from bitrank_analysis.files import name_of
from bitrank_analysis.report import facts
from bitrank_analysis.report.side_by_side import SideBySide
from bitrank_analysis.tables import Table


@dataclass(frozen=True)
class Section:
    """The part of the report on one task."""

    evidence: Evidence
    figures: list[Figure]
    tables: list[Table]
    errors: SideBySide
    warnings: list[str] = field(default_factory=list)  # chance level and collapsed runs

    @property
    def lead(self) -> Figure | None:
        """The figure at the top of the section: quality against bytes."""
        return next((figure for figure in self.figures if figure.name.startswith("quality-bytes")), None)

    def table(self, name: str) -> Table | None:
        """The task's table ``name``, None if it has no rows."""
        wanted = name_of(name, self.evidence.task)
        return next((table for table in self.tables if table.name == wanted), None)


@dataclass(frozen=True)
class Report:
    """Content of both the HTML page and the Markdown text."""

    experiment: str
    verdict: list[str]
    sections: list[Section]
    runs: list[facts.RunLink]
    machine: list[tuple[str, str]]
    not_run: list[str]
    gaps: list[str]
    notice: str = ""  # a warning at the top of the page


def extent(sections: Sequence[Section]) -> str:
    """Numbers of arms and runs of each task, in one line."""
    parts = []
    for section in sections:
        arms = phrasing.count(len(section.evidence.configs), "arm")
        runs = phrasing.count(len(section.evidence.runs), "run")
        parts.append(f"{section.evidence.task}: {arms}, {runs}")
    return "; ".join(parts)
