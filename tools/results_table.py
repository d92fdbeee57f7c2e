"""Print a Markdown table from a study's summary. Usage: results_table.py results/experiment_summary.csv."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from bitrank.spec.task_kinds import task_metrics

HEAD = (
    "| task | config | zero-shot | test | model MiB | bits | trained % | active rank | peak MiB "
    "| tokens/s | seconds |"
)
# Column of the summary → how its numbers are shown, in the order of the table.
_COSTS = {
    "model_mib": ".1f",
    "bits_per_parameter": ".2f",
    "trainable_percent": ".2f",
    "active_rank": ".0f",
    "peak_mib": ",.0f",
    "train_tokens_per_s": ",.0f",
    "total_s": ".0f",
}


def main(path: Path) -> None:
    """Print the rows of the CSV at ``path`` as a Markdown table."""
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    print(HEAD)
    print("|" + "---|" * HEAD.count("| ") + "")
    for row in rows:
        print(_line(row))


def _line(row: dict[str, str]) -> str:
    """The row as Markdown; a run that failed, or was not tested, has empty cells."""
    costs = [format(float(row[name]), how) if row[name] else "" for name, how in _COSTS.items()]
    cells = [f"`{row['task']}`", f"`{row['config']}`", *_quality(row), *costs]
    return f"| {' | '.join(cells)} |"


def _quality(row: dict[str, str]) -> tuple[str, str]:
    """The metric of the row's task before and after training; empty without a test."""
    for metric in task_metrics():
        column = metric.name.replace(" ", "_")
        if row[column]:
            before = row[f"zero_shot_{column}"]
            return (
                metric.text(float(before)) if before else "",
                f"**{float(row[column]):.{metric.decimals}f}**",
            )
    return "", ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
