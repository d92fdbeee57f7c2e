"""Print a Markdown table from a study's summary. Usage: results_table.py results/experiment_summary.csv."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

HEAD = (
    "| task | config | zero-shot | test | model MiB | bits | trained % | active rank | peak MiB "
    "| tokens/s | seconds |"
)


def main(path: Path) -> None:
    """Print the rows of the CSV at ``path`` as a Markdown table."""
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    print(HEAD)
    print("|" + "---|" * HEAD.count("| ") + "")
    for row in rows:
        print(_line(row))


def _line(row: dict[str, str]) -> str:
    if row["accuracy"]:
        quality = [f"acc {float(row['zero_shot_accuracy']):.3f}", f"**{float(row['accuracy']):.3f}**"]
    else:
        quality = [f"ppl {float(row['zero_shot_perplexity']):.2f}", f"**{float(row['perplexity']):.2f}**"]
    cells = [
        f"`{row['task']}`",
        f"`{row['config']}`",
        *quality,
        f"{float(row['model_mib']):.1f}",
        f"{float(row['bits_per_parameter']):.2f}",
        f"{float(row['trainable_percent']):.2f}",
        f"{float(row['active_rank']):.0f}",
        f"{float(row['peak_mib']):,.0f}",
        f"{float(row['train_tokens_per_s']):,.0f}",
        f"{float(row['total_s']):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
