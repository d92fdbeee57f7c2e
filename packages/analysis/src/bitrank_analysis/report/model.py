"""The report as values: sections, and the notes that concern all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures import Figure
from bitrank_analysis.report import facts
from bitrank_analysis.report.side_by_side import SideBySide
from bitrank_analysis.tables import Table


@dataclass(frozen=True)
class Section:
    """One task's part of the report."""

    evidence: Evidence
    figures: list[Figure]
    tables: list[Table]
    errors: SideBySide
    warnings: list[str] = field(
        default_factory=list
    )  # to be read with the result: chance level and collapses

    @property
    def lead(self) -> Figure | None:
        """The one figure of the first screen: quality against bytes."""
        return next((one for one in self.figures if one.name.startswith("quality-bytes")), None)

    def table(self, name: str) -> Table | None:
        """The table of that name, None when the task has none."""
        return next((table for table in self.tables if table.name == f"{name}-{self.evidence.task}"), None)


@dataclass(frozen=True)
class Report:
    """All that the page and the plain text say."""

    experiment: str
    verdict: list[str]
    sections: list[Section]
    runs: list[facts.RunLink]
    machine: list[tuple[str, str]]
    not_run: list[str]
    gaps: list[str]
    notice: str = ""  # what must be known before any number is read


def sentences(sections: Sequence[Section]) -> str:
    """Tasks, arms and seeds in a line."""
    return "; ".join(
        f"{s.evidence.task}: {phrasing.count(len(s.evidence.configs), 'arm')}, {phrasing.count(len(s.evidence.runs), 'run')}"
        for s in sections
    )
