"""The report as Markdown, readable in a terminal."""

from __future__ import annotations

from bitrank_analysis.one_line import markdown_cell, one_line
from bitrank_analysis.report.model import Report, Section
from bitrank_analysis.report.side_by_side import SideBySide


def plain(report: Report) -> str:
    """The report as Markdown; figures appear as their titles and files."""
    parts = [
        f"# {report.experiment}",
        *([report.notice] if report.notice else []),
        "\n\n".join(map(one_line, report.verdict)),
    ]
    parts += [_section(section) for section in report.sections]
    parts.append(
        "## Runs\n\n"
        + _bullets([f"{run.name}: {run.quality}, {run.seconds} s, {run.address}" for run in report.runs])
    )
    parts.append("## Not run\n\n" + (_bullets(report.not_run) or "Every cell of the grid has a result."))
    if report.gaps:
        parts.append("## Notes and gaps\n\n" + _bullets(report.gaps))
    parts.append(
        "## Machine and versions\n\n" + _bullets([f"{label}: {value}" for label, value in report.machine])
    )
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    parts = [
        f"## {one_line(section.evidence.task)}",
        *([_bullets(section.warnings)] if section.warnings else []),
    ]
    parts += [f"### {one_line(table.caption)}\n\n{table.markdown()}".rstrip() for table in section.tables]
    parts.append(
        "### Figures\n\n"
        + _bullets([f"{figure.title} (figures/{figure.name}.svg)" for figure in section.figures])
    )
    parts.append(f"### Errors side by side\n\n{_errors(section.errors)}")
    return "\n\n".join(parts)


def _errors(errors: SideBySide) -> str:
    if not errors.rows:
        return errors.sentence
    rows = [errors.heads, tuple("---" for _ in errors.heads), *errors.rows]
    lines = [" | ".join(map(markdown_cell, row)) for row in rows]
    return errors.sentence + "\n\n" + "\n".join(f"| {line} |" for line in lines)


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {one_line(line)}" for line in lines)
