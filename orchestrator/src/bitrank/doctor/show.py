"""Print the doctor's report on a terminal, one row per section."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from bitrank.terminal import console


def print_report(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for section, content in {**report, "formats": _formats(report["formats"])}.items():
        table.add_row(section.replace("_", " "), _text(content))
    console().print(table, markup=False, highlight=False)


def _formats(formats: dict[str, dict[str, dict[str, Any]]]) -> dict[str, str]:
    return {
        text: "; ".join(f"{name} {_outcome(trial)}" for name, trial in by_backend.items())
        for text, by_backend in formats.items()
    }


def _outcome(trial: dict[str, Any]) -> str:
    if trial["problem"] is not None:
        return f"fails: {trial['problem']}"
    return f"works (output off by {trial['output_error']:.2%}, gradient {trial['gradient_error']:.2%})"


def _text(content: Any) -> str:
    if isinstance(content, dict):
        return (
            "\n".join(
                f"{str(key).replace('_', ' ')}: {_text(value).replace(chr(10), '; ')}"
                for key, value in content.items()
            )
            or "nothing"
        )
    return ", ".join(str(part) for part in content) if isinstance(content, list) else str(content)
