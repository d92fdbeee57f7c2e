"""A study of planners in the paper: its table, its figure and its sentences, from the files of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.figures import pdf
from bitrank_analysis.figures.difference_bytes import difference_bytes
from bitrank_analysis.files import write_atomically
from bitrank_analysis.paper.latex import tabular
from bitrank_analysis.report.planners import planner_sentences

Frames = Mapping[str, pd.DataFrame]  # by task, as arms_table makes them
_NEEDED = {"config", "budget", "stored_bytes", "quality", "zero", "baseline", "metric", "p_holm", "verdict"}
_MIB = 2**20


def read_planners(folders: Sequence[Path]) -> Frames:
    """The arms of each task of studies of planners, from the CSV files beside their ``report.md``.

    Raises :class:`AnalysisError` for a folder without such a file, and for a task that two folders have.
    """
    found: dict[str, pd.DataFrame] = {}
    for folder in folders:
        tables = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}
        tasks = {name: frame for name, frame in tables.items() if set(frame.columns) >= _NEEDED}
        if not tasks:
            raise AnalysisError(
                f"expected the results of a study of planners in {folder} (report.md with a CSV file for "
                "each task), found none; give the folder that `bitrank study` named"
            )
        if twice := found.keys() & tasks.keys():
            raise AnalysisError(f"{min(twice)} is a task of two studies; give one folder for each task")
        found |= tasks
    return found


def planners_table(frames: Frames) -> str:
    """Every arm with a budget against the reference of its budget, smallest budget first; "" without any."""
    head = ["Arm", "Test", "Untrained", "MiB", "Difference", "95 % interval", "p (Holm)", "Verdict"]
    groups = []
    for task, frame in frames.items():
        for budget, rows in frame[frame["budget"].notna()].groupby("budget"):
            ordered = rows.sort_values("baseline", na_position="first", kind="stable")
            metric = _metric(frame)
            heading = f"{task}: {budget / _MIB:.1f} MiB, difference in {phrasing.unit(metric)}"
            groups.append((heading, [_arm(row, metric) for _, row in ordered.iterrows()]))
    return tabular("l" + "r" * (len(head) - 1), head, groups) if groups else ""


def _metric(frame: pd.DataFrame) -> str:
    """The metric of a task; rows of references have none."""
    return str(frame["metric"].dropna().iloc[0])


def _arm(row: pd.Series, metric: str) -> list[str]:
    quality = [phrasing.quality(float(row[key]), metric) for key in ("quality", "zero")]
    size = f"{row['stored_bytes'] / _MIB:.1f}"
    if not isinstance(row["baseline"], str):
        return [row["config"], *quality, size, "", "", "", "reference"]
    change, low, high = (
        phrasing.signed(phrasing.change(float(row[key]), metric)) for key in ("difference", "low", "high")
    )
    return [row["config"], *quality, size, change, f"{low} to {high}", f"{row['p_holm']:.3g}", row["verdict"]]


def planners_sentences(frames: Frames) -> list[str]:
    """Which arms each reference beats in its own bytes, by task."""
    found = []
    for task, frame in frames.items():
        references = list(dict.fromkeys(frame["baseline"].dropna()))
        outcomes = planner_sentences(frame, references)
        found += [f"On {task}, {outcome[0].lower()}{outcome[1:]}" for outcome in outcomes]
    return found


def draw_planners(frames: Frames, folder: Path) -> list[str]:
    """Write ``planners-<task>.pdf`` for every task with a comparison; returns the file names."""
    names = []
    for task, frame in frames.items():
        letters = "".join(letter if letter.isalnum() else "-" for letter in task)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"planners-{letters}.pdf", pdf(difference_bytes(frame, task)))
        names.append(f"planners-{letters}.pdf")
    return names
