"""Start-up time of the command line, and of a run up to its first step.

python benchmarks/startup.py [--rounds 3] [--configs B-FP,B-Q4] [--tasks movie_sentences]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from harness import (
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
    write_section,
)

_STEPS = 6
COMMANDS = {
    "bitrank --help": ["--help"],
    "bitrank list": ["list"],
    "bitrank matrix --help": ["matrix", "--help"],
}


def main() -> int:
    arguments = options(__doc__, rounds=3, configs=("B-FP", "B-Q4")).parse_args()
    threads = cores()
    here = machine(threads)
    with tempfile.TemporaryDirectory() as folder:
        found = alternate(
            {name: partial(_command, command, Path(folder)) for name, command in COMMANDS.items()},
            arguments.rounds,
        )
    rows = [[f"`{name}`", figure_cell(rounds, "seconds", 2)] for name, rounds in found.items()]
    cells = [(task, config) for task in arguments.tasks for config in arguments.configs]
    steps = arguments.steps or _STEPS
    runs = alternate({cell: partial(_run, *cell, steps, threads) for cell in cells}, min(arguments.rounds, 2))
    keys = ("imported_at_s", "ready_at_s", "first_step_at_s")
    set_up = [
        [f"`{task}` {config}", *(figure_cell(rounds, key, 2) for key in keys)]
        for (task, config), rounds in runs.items()
    ]
    text = [
        "## From nothing to the first step",
        machine_line(here),
        table(("command", "seconds"), rows),
        table(("run", "imported after s", "ready to train after s", "first step done after s"), set_up),
        "Seconds from the start of the process, tokens and models in the cache, without the test before "
        "training; median (range).",
    ]
    write_section("startup", "\n\n".join(text), arguments.results)
    return report_failures({**found, **{" ".join(cell): rounds for cell, rounds in runs.items()}})


def _command(command: list[str], folder: Path) -> Figures:
    """Seconds of ``bitrank`` with ``command``, in a folder without a store."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "bitrank", *command], capture_output=True, text=True, cwd=folder, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SideFailed(
            f"bitrank {' '.join(command)} ended with code {done.returncode}: {done.stderr.strip()[-200:]}"
        )
    return {"seconds": seconds}


def _run(task: str, config: str, steps: int, threads: int) -> Figures:
    return run_scripts(
        script("ours.py", "--task", task, "--config", config, "--steps", steps, "--threads", threads)
    )[0]


if __name__ == "__main__":
    sys.exit(main())
