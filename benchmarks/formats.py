"""Does a training step in few bits cost more than one in 16? Every format on every CPU backend that a run can ask for, and mixed plans.

    python benchmarks/formats.py [--rounds 3] [--steps 12] [--configs bf16,nf4-dq,int8@quanto] [--tasks movie_sentences]

Each run trains LoRA of rank 8 on all block matrices; only the stored format differs, given as a plan file. Batches are the same in
every run, so step times compare. ``Joint-2`` and ``Joint-3`` here are the bits of those configs with rank 8. What a backend serves
but no ``--quant-backend`` asks for (nf4 in plain torch, int2 in quanto) is not timed: no run uses it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

from bitrank.configs import CONFIGS
from bitrank_quant import block_matrices, weight_matrices
from harness import (
    STEPS,
    Figures,
    alternate,
    cores,
    figure_cell,
    fresh,
    leave,
    machine,
    machine_words,
    options,
    ratio_cell,
    script,
    table,
    write_section,
)
from machine import empty_model

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


def main() -> int:
    parser = options(__doc__, rounds=1, configs=list(ROWS))
    arguments = parser.parse_args()
    if unknown := set(arguments.configs) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; known: {', '.join(ROWS)}")
    threads = cores()
    here, parts = machine(threads), list[str]()
    everything: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in arguments.tasks:
            steps = arguments.steps or STEPS[task]
            sides = {row: partial(_time, row, task, steps, threads, Path(folder)) for row in dict.fromkeys(["bf16", *arguments.configs])}
            found = alternate(sides, arguments.rounds)
            parts.append(f"### `{task}`, {steps} steps, {arguments.rounds} rounds\n\n{_table(found)}")
            everything |= {f"{task} {row}": rounds for row, rounds in found.items()}
    text = [
        "## A training step by format",
        machine_words(here),
        *parts,
        "*÷ bf16*: time of a step over that in bf16, median (range) over rounds.",
    ]
    write_section("formats", "\n\n".join(text), arguments.results)
    return leave(everything)


def plan(row: str, task: str) -> dict[str, dict[str, object]]:
    """The plan of ``row``: one format, or the bits of a config, for the block matrices; rank 8 on all of them."""
    what = ROWS[row][0]
    model = empty_model(task)
    blocks = [matrix.name for matrix in block_matrices(model)]
    if what in CONFIGS:
        free = [m for m in weight_matrices(model) if m.role != "head" and m.tied_to is None]
        precision: dict[str, object] = dict(CONFIGS[what].precision.bits(free))
    else:
        precision = dict.fromkeys(blocks, what)
    return {"precision": precision, "ranks": dict.fromkeys(blocks, 8)}


def _time(row: str, task: str, steps: int, threads: int, folder: Path) -> Figures:
    path = folder / f"{row.replace('@', '-')}-{task}.json"
    path.write_text(json.dumps(plan(row, task)))
    words = ("--plan", path, "--task", task, "--steps", steps, "--threads", threads, "--set", f"quant_backend={ROWS[row][1]}")
    return fresh(script("ours.py", *words))[0]


def _table(found: dict[str, list[Figures]]) -> str:
    rows = [
        [row, figure_cell(rounds, "step_s", 1, 1000), ratio_cell(rounds, found["bf16"], "step_s"), figure_cell(rounds, "peak_mib")]
        for row, rounds in found.items()
    ]
    return table(("format", "ms a step", "÷ bf16", "peak MiB"), rows)


if __name__ == "__main__":
    sys.exit(main())
