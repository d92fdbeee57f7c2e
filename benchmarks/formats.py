"""Time of a training step by format: every format on every CPU backend that a run can use, and mixed plans.

    python benchmarks/formats.py [--rounds 3] [--steps 12] [--configs bf16,nf4-dq@bitsandbytes,int8@quanto]
    [--tasks movie_sentences]

LoRA of rank 8 on all block matrices is trained; only the stored format differs, set by a plan file. Each
format alternates with bf16 step by step (``turns.py``), since the machine's speed varies between runs.
``bf16`` against itself shows the noise of a ratio. ``Joint-2`` and ``Joint-3`` here are the formats of those
configs with rank 8. Combinations that no ``--quant-backend`` selects (nf4 in plain torch, int2 in quanto) are
not timed: no run uses them.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bitrank.process.environment import run_environment
from bitrank.spec.configs import CONFIGS, find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_quant import block_matrices, weight_matrices
from harness import (
    WARM_UP,
    Figures,
    alternate,
    cores,
    figure_cell,
    machine,
    machine_line,
    options,
    report_failures,
    script,
    table,
    write_section,
)
from machine import empty_model
from turns import in_turns, parse_step_arguments

# Row → (format or config of the plan, --quant-backend).
ROWS = {
    "bf16": ("bf16", "auto"),
    **{f"{text}@bitsandbytes": (text, "auto") for text in ("nf4-dq", "nf4", "fp4", "llm-int8")},
    **{f"{text}@torch": (text, "auto") for text in ("int8", "int4-g64", "int3-g64", "int2-g64")},
    "int8@quanto": ("int8", "quanto-int8"),
    "int4-g64@quanto": ("int4-g64", "quanto-int4"),
    "Joint-2": ("Joint-2", "auto"),
    "Joint-3": ("Joint-3", "auto"),
}
# Steps of each side, of which the first WARM_UP are not counted.
STEPS = {"movie_sentences": 43, "wiki_articles": 23}


def main() -> int:
    parser = options(__doc__, rounds=1, configs=list(ROWS), steps=STEPS)
    arguments = parse_step_arguments(parser)
    if unknown := set(arguments.configs) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; known: {', '.join(ROWS)}")
    threads = cores()
    here, parts = machine(threads), list[str]()
    everything: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in arguments.tasks:
            steps = arguments.steps or STEPS[task]
            sides = {
                row: partial(_in_turns, row, task, steps, threads, Path(folder)) for row in arguments.configs
            }
            found = alternate(sides, arguments.rounds)
            parts.append(f"### `{task}`, {steps} steps, rounds: {arguments.rounds}\n\n{_table(found)}")
            everything |= {f"{task} {row}": rounds for row, rounds in found.items()}
    text = [
        "## A training step by format",
        machine_line(here),
        *parts,
        "Medians over steps: milliseconds, and the time of a step over that of the alternating bf16 step; "
        "over rounds the median (range). *quartiles* are those of the last round's ratios. bf16 against "
        "itself shows the noise.",
    ]
    write_section("formats", "\n\n".join(text), arguments.results)
    return report_failures(everything)


def plan(row: str, task: str) -> dict[str, dict[str, object]]:
    """The plan of ``row``: one format, or the formats of a config, for the block matrices, with rank 8."""
    name = ROWS[row][0]
    model = empty_model(task)
    blocks = [matrix.name for matrix in block_matrices(model)]
    if name in CONFIGS:
        quantizable = [m for m in weight_matrices(model) if m.role != "head" and m.tied_to is None]
        precision: dict[str, object] = dict(find_config(name).precision.assign_formats(quantizable))
    else:
        precision = dict.fromkeys(blocks, name)
    return {"precision": precision, "ranks": dict.fromkeys(blocks, 8)}


def _in_turns(row: str, task: str, steps: int, threads: int, folder: Path) -> Figures:
    paths = {name: folder / f"{name.replace('@', '-')}-{task}.json" for name in ("bf16", row)}
    for name, path in paths.items():
        path.write_text(json.dumps(plan(name, task)))
    arguments = ("--task", task, "--steps", steps, "--threads", threads, "--set")
    commands = [
        script("turns.py", paths[name], *arguments, f"quant_backend={ROWS[name][1]}")
        for name in ("bf16", row)
    ]
    environment = run_environment(make_spec(find_profile("laptop"), "B-FP", task, {"threads": threads}))
    sixteen, other = (
        [step["seconds"] for step in side[WARM_UP:]] for side in in_turns(commands, steps, [environment] * 2)
    )
    return figures(sixteen, other)


def figures(sixteen: Sequence[float], other: Sequence[float]) -> Figures:
    """Both medians, and the quartiles of ``other`` ÷ ``sixteen`` over paired steps (two or more)."""
    ratios = [ours / theirs for theirs, ours in zip(sixteen, other, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "step_s": statistics.median(other),
        "bf16_s": statistics.median(sixteen),
        "ratio": ratio,
        "low": low,
        "high": high,
    }


def _table(found: dict[str, list[Figures]]) -> str:
    rows = [
        [
            row,
            figure_cell(rounds, "step_s", 1, 1000),
            figure_cell(rounds, "bf16_s", 1, 1000),
            figure_cell(rounds, "ratio", 2),
            f"{figure_cell(rounds[-1:], 'low', 2)}–{figure_cell(rounds[-1:], 'high', 2)}",
        ]
        for row, rounds in found.items()
    ]
    return table(("format", "ms a step", "bf16 beside it", "÷ bf16", "quartiles"), rows)


if __name__ == "__main__":
    sys.exit(main())
