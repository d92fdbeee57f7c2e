"""Growth of time and memory with steps, data, sequence length, batch size, rank, and adapted matrices.

    python benchmarks/growth.py [--rounds 1] [--steps 16] [--axes rank,batch] [--tasks movie_sentences]

Each point is a run that differs from B-FP of the laptop profile in one setting. Plotted in figures/growth.png
and .svg: microseconds per token (upper row) and peak memory minus imports (lower row).
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
from bitrank_data import open_task
from bitrank_quant import block_matrices
from harness import (
    FIGURES,
    STEPS,
    Figures,
    SideFailed,
    alternate,
    cores,
    figure_cell,
    machine,
    machine_line,
    options,
    report_failures,
    run_scripts,
    script,
    table,
    values,
    write_section,
)
from machine import empty_model

TASKS = ("movie_sentences", "wiki_articles")
Arguments = list[str]
Points = dict[int, Arguments]


def _set(key: str, *numbers: int) -> Callable[[Path], dict[str, Points]]:
    """An axis along one setting of the spec, for both tasks."""
    return lambda _: {
        task: {number: ["--config", "B-FP", "--set", f"{key}={number}"] for number in numbers}
        for task in TASKS
    }


def _matrices(folder: Path) -> dict[str, Points]:
    """Adapters on the last matrices only: no gradient is needed below the lowest adapter."""
    found: dict[str, Points] = {}
    for task in TASKS:
        names = [matrix.name for matrix in block_matrices(empty_model(task))]
        found[task] = {}
        for share in (6, 3, 1):
            chosen = names[-(len(names) // share) :]
            path = folder / f"top-{len(chosen)}-{task}.json"
            path.write_text(json.dumps({"precision": {}, "ranks": dict.fromkeys(chosen, 8)}))
            found[task][len(chosen)] = ["--plan", str(path)]
    return found


def _sentences(folder: Path) -> dict[str, Points]:
    """The movie sentences as user-provided files of growing size."""
    examples = open_task("movie_sentences").load().splits["train"]
    found: Points = {}
    for count in (1000, 4000, 8000):
        path = folder / f"sentences-{count}.csv"
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(["text", "label"])
            writer.writerows(
                (example.text, ("negative", "positive")[example.label or 0]) for example in examples[:count]
            )
        found[count] = ["--config", "B-FP", "--task", str(path)]
    return {"movie_sentences": found}


AXES: dict[str, Callable[[Path], dict[str, Points]]] = {
    "sequence length": _set("max_length", 32, 128, 256),
    "batch": _set("batch_size", 2, 8, 32),
    "rank": _set("rank", 2, 8, 32),
    "adapted matrices": _matrices,
    "sentences": _sentences,
}


def main() -> int:
    parser = options(__doc__, rounds=1)
    parser.add_argument(
        "--axes",
        type=lambda text: text.split(","),
        default=[*AXES, "steps"],
        help=f"of: {','.join(AXES)},steps",
    )
    arguments = parser.parse_args()
    threads = cores()
    here = machine(threads)
    with tempfile.TemporaryDirectory() as folder:
        sides = _sides(arguments.axes, arguments.tasks, arguments.steps, threads, Path(folder))
        found = alternate(sides, arguments.rounds)
    rows = [[axis, f"`{task}`", f"{at:,}", *_cells(rounds)] for (axis, task, at), rounds in found.items()]
    if "steps" in arguments.axes:
        along = alternate(
            {
                ("steps", task): partial(
                    _run, task, ["--config", "B-FP"], _long(task, arguments.steps), threads
                )
                for task in arguments.tasks
            },
            1,
        )
        found |= {
            (*key, step): [point]
            for key, rounds in along.items()
            for step, point in _intervals(rounds[0]).items()
        }
        rows += [
            ["steps", f"`{task}`", f"{at:,}", *_cells(rounds)]
            for (axis, task, at), rounds in found.items()
            if axis == "steps"
        ]
    draw(found)
    text = [
        "## Growth",
        machine_line(here),
        "![cost against size](figures/growth.png)",
        table(("axis", "task", "at", "µs a token", "peak MiB over imports"), rows),
        _NOTE,
    ]
    write_section("growth", "\n\n".join(text), arguments.results)
    return report_failures({" ".join(map(str, key)): rounds for key, rounds in found.items()})


_NOTE = """B-FP with one setting varied at a time. *steps*: one long run, cost per token in each quarter of it
(one peak memory for all). *sentences*: user-provided files with that many rows, a fifth of them not used for
training. *adapted matrices*: the last ones. The planner's growth is in section `planner`, that of the store
in `analysis` and `scaling`."""


def _sides(
    axes: list[str], tasks: list[str], steps: int | None, threads: int, folder: Path
) -> dict[tuple[str, str, int], Any]:
    sides: dict[tuple[str, str, int], Any] = {}
    for axis in axes:
        if axis != "steps":
            for task, points in AXES[axis](folder).items():
                if task in tasks:
                    sides |= {
                        (axis, task, at): partial(_run, task, arguments, steps or STEPS[task], threads)
                        for at, arguments in points.items()
                    }
    return sides


def _run(task: str, arguments: Arguments, steps: int, threads: int) -> Figures:
    found = run_scripts(
        script("ours.py", "--task", task, "--steps", steps, "--threads", threads, *arguments)
    )[0]
    return {
        **found,
        "token_us": 1e6 * found["seconds"] / found["tokens"],
        "over_mib": found["peak_mib"] - found["import_mib"],
    }


def _long(task: str, steps: int | None) -> int:
    return steps or {"movie_sentences": 200, "wiki_articles": 24}[task]


def _intervals(run: Figures) -> dict[int, Figures]:
    """Cost per token between four points of one run, after its warm-up."""
    if "failed" in run:
        return {0: run}
    points = [point for point in run["points"] if point[0] >= 3]
    marks = [points[round(part * (len(points) - 1) / 4)] for part in range(5)]
    pairs = pairwise(marks)
    return {
        b[0]: {"token_us": 1e6 * (b[2] - a[2]) / (b[1] - a[1]), "over_mib": run["over_mib"]}
        for a, b in pairs
        if b[1] > a[1]
    }


def _cells(rounds: list[Figures]) -> list[str]:
    return [figure_cell(rounds, "token_us", 1), figure_cell(rounds, "over_mib")]


def draw(found: dict[tuple[str, str, int], list[Figures]], folder: Path = FIGURES) -> None:
    """One column per axis, time above memory, one line per task; failed points are omitted."""
    frame = _frame(found)
    rows = []
    for column, title in (("token_us", "µs a token"), ("over_mib", "MiB over imports")):
        panels = [
            _panel(frame[frame["axis"] == axis], column, title, axis) for axis in dict.fromkeys(frame["axis"])
        ]
        rows.append(alt.hconcat(*panels).resolve_scale(y="shared"))
    chart = (
        alt.vconcat(*rows)
        .configure_view(stroke=None)
        .configure_axis(grid=True, gridOpacity=0.4, labelFontSize=11, titleFontSize=12)
    )
    folder.mkdir(exist_ok=True)
    chart.save(str(folder / "growth.png"), scale_factor=2)
    chart.save(str(folder / "growth.svg"))


def _frame(found: dict[tuple[str, str, int], list[Figures]]) -> pd.DataFrame:
    rows = []
    for (axis, task, at), rounds in found.items():
        try:
            pairs = zip(values(rounds, "token_us"), values(rounds, "over_mib"), strict=True)
            rows += [
                {"axis": axis, "task": task, "at": at, "token_us": us, "over_mib": mib} for us, mib in pairs
            ]
        except SideFailed:
            continue
    return pd.DataFrame(rows)


def _panel(frame: pd.DataFrame, column: str, title: str, axis: str) -> alt.LayerChart | alt.FacetChart:
    """Log-log, so that a slope is a power; linear for steps, where the expected curve is flat."""
    scale = alt.Scale(type="linear" if axis == "steps" else "log", nice=False, padding=12)
    x = alt.X(
        "at:Q",
        title=axis,
        scale=scale,
        axis=alt.Axis(values=sorted(set(frame["at"].tolist())), format="~s", labelOverlap=True),
    )
    y = alt.Y(f"mean({column}):Q", title=title, scale=alt.Scale(type="log", nice=True))
    base = alt.Chart(frame).encode(
        x=x, y=y, color=alt.Color("task:N", title=None, legend=alt.Legend(orient="top"))
    )
    return alt.layer(base.mark_line(), base.mark_point(filled=True, size=40)).properties(
        width=170, height=150
    )


if __name__ == "__main__":
    sys.exit(main())
