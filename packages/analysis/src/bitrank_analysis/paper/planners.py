"""A study of planners in the paper: its table, its figure and its sentences, from the files of its report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.figures import pdf
from bitrank_analysis.figures.difference_bytes import budget_endings, difference_bytes
from bitrank_analysis.files import write_atomically
from bitrank_analysis.paper.latex import tabular
from bitrank_analysis.paper.latex_floats import file_name
from bitrank_analysis.statistics.verdicts import ALIKE, AS_GOOD, BETTER, DIFFERS, UNRESOLVED, WORSE

Frames = Mapping[str, pd.DataFrame]  # by task, as arms_table makes them
_NEEDED = {"config", "budget", "stored_bytes", "quality", "zero", "baseline", "metric", "p_holm", "verdict"}
_MIB = 2**20


def read_planners(folders: Sequence[Path]) -> Frames:
    """The arms of each task of studies of planners, from the CSV files beside their ``report.md``.

    Tasks without an arm that was compared at equal bytes are left out. Raises :class:`AnalysisError` for a
    folder without any other, and for a task that two folders have.
    """
    found: dict[str, pd.DataFrame] = {}
    for folder in folders:
        tables = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}
        tasks = {name: frame for name, frame in tables.items() if _is_compared(frame)}
        if not tasks:
            raise AnalysisError(
                f"expected the results of a study of planners in {folder} (report.md with a CSV file for "
                "each task, in which an arm was compared at equal bytes), found none; give the folder that "
                "`bitrank study` named"
            )
        if twice := found.keys() & tasks.keys():
            raise AnalysisError(f"{min(twice)} is a task of two studies; give one folder for each task")
        found |= tasks
    return found


def _is_compared(frame: pd.DataFrame) -> bool:
    """Whether ``frame`` is that of a study of planners, with a comparison at equal bytes."""
    return set(frame.columns) >= _NEEDED and bool((frame["baseline"].notna() & frame["budget"].notna()).any())


def planners_table(frames: Frames) -> str:
    """Every arm with a budget against the reference of its budget, smallest budget first; "" without any."""
    head = ["Arm", "Test", "Untrained", "MiB", "Difference", "95 % interval", "p (Holm)", "Verdict"]
    groups = []
    for task, frame in frames.items():
        references = set(frame["baseline"].dropna())
        for budget, rows in frame[frame["budget"].notna()].groupby("budget"):
            ordered = rows.sort_values("baseline", na_position="first", kind="stable")
            metric = _metric(frame)
            heading = f"{task}: {budget / _MIB:.1f} MiB, difference in {phrasing.unit(metric)}"
            groups.append((heading, [_arm(row, metric, references) for _, row in ordered.iterrows()]))
    return tabular("l" + "r" * (len(head) - 1), head, groups) if groups else ""


def _metric(frame: pd.DataFrame) -> str:
    """The metric of a task; rows of references have none."""
    return str(frame["metric"].dropna().iloc[0])


def _arm(row: pd.Series, metric: str, references: Collection[str]) -> list[str]:
    quality = [phrasing.quality(float(row[key]), metric) for key in ("quality", "zero")]
    size = f"{row['stored_bytes'] / _MIB:.1f}"
    if not isinstance(row["baseline"], str):
        role = "reference" if row["config"] in references else "not compared"
        return [row["config"], *quality, size, "", "", "", role]
    change, low, high = (
        phrasing.signed(phrasing.change(float(row[key]), metric)) for key in ("difference", "low", "high")
    )
    return [row["config"], *quality, size, change, f"{low} to {high}", f"{row['p_holm']:.3g}", row["verdict"]]


def planners_sentences(frames: Frames) -> list[str]:
    """One sentence for each task and budget: what the reference is better than, by how much, and what not."""
    found = []
    for task, frame in frames.items():
        endings = budget_endings(list(dict.fromkeys(frame["baseline"].dropna())))
        for reference, ending in endings.items():
            rows = frame[(frame["baseline"] == reference) & frame["budget"].notna()]
            if len(rows):
                found.append(_sentence(task, (reference, ending), rows, _metric(frame)))
    return found


def _sentence(task: str, ended: tuple[str, str], rows: pd.DataFrame, metric: str) -> str:
    reference, ending = ended
    groups: dict[str, list[str]] = {}
    for _, row in rows.iterrows():
        words, signed = _WORDS[str(row["verdict"])]
        name = str(row["config"]).removesuffix(ending)
        change = phrasing.signed(phrasing.change(float(row["difference"]), metric))
        groups.setdefault(words, []).append(f"{name} ({change})" if signed else name)
    parts = [words.format(phrasing.listed(names)) for words, names in groups.items()]
    where = f"On {task} within {rows['budget'].iloc[0] / _MIB:.1f} MiB"
    unit = f"(differences in {phrasing.unit(metric)})"
    return f"{where}, {reference.removesuffix(ending)} {'; '.join(parts)} {unit}."


# Verdict on an arm against the reference → what it says about the reference, and whether its size is printed.
_WORDS = {
    WORSE: ("is better than {}", True),
    BETTER: ("is worse than {}", True),
    AS_GOOD: ("is as good as {}", True),
    UNRESOLVED: ("shows no difference from {}", False),
    DIFFERS: ("differs on the examples of one seed from {}", True),
    ALIKE: ("is alike on the examples of one seed to {}", True),
}


def draw_planners(frames: Frames, folder: Path) -> list[str]:
    """Write ``planners-<task>.pdf`` for every task with a comparison; returns the file names."""
    names = []
    for task, frame in frames.items():
        name = file_name("planners", task)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, pdf(difference_bytes(frame, task)))
        names.append(name)
    return names
