"""Cost of the whole study: the laptop profile's runs from a complete installation, into a new store.

    python benchmarks/study.py [--profile laptop] [--configs …] [--tasks …] [--jobs 2] [--steps N]

Runs ``bitrank matrix`` as a user does, with texts and models in the cache. *Orchestration and logging* is the
remainder of its wall time: wall × slots − Σ of the runs' own seconds (from process start to last figure) −
the time that slots were idle at the end because no run was left, as a share of wall × slots. Quality is
that of seed 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bitrank.execution.local import choose_slots
from bitrank.spec.configs import CONFIGS
from bitrank.spec.matrix import matrix
from bitrank.spec.profiles import find_profile
from bitrank_analysis import open_store
from harness import cores, machine, machine_line, options, table, write_section


def main() -> int:
    parser = options(__doc__, rounds=1, configs=list(CONFIGS), tasks=())
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: what bitrank chooses)")
    arguments = parser.parse_args()
    profile = find_profile(arguments.profile)
    tasks, given = arguments.tasks or list(profile.tasks), {"steps": arguments.steps}
    specs = matrix(profile, arguments.configs, tasks, [0], given)
    slots = arguments.jobs or min(choose_slots(specs), len(specs))
    here = machine(cores())
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            lines.append(
                _study(
                    Path(folder) / str(len(lines)),
                    _arguments(arguments.profile, arguments.configs, tasks, slots, arguments.steps),
                    slots,
                )
            )
            print(lines[-1], flush=True)
        entries = json.loads((Path(folder) / "0" / "results" / "all_results.json").read_text())
    note = (
        ""
        if arguments.steps is None
        else f" **{arguments.steps} steps instead of the profile's: not representative of the study.**"
    )
    head = (
        "round",
        "runs",
        "slots",
        "wall s",
        "Σ run s",
        "slots empty at the end s",
        "orchestration and logging",
    )
    shown = table(head, [[str(number + 1), *line] for number, line in enumerate(lines)])
    text = [f"## The study, profile {profile.name}", machine_line(here) + note, shown, _quality(entries)]
    write_section("study", "\n\n".join(text), arguments.results)
    return 0


def _arguments(
    profile: str, configs: list[str], tasks: list[str], slots: int, steps: int | None
) -> list[str]:
    arguments = [
        "matrix",
        "--profile",
        profile,
        "--configs",
        ",".join(configs),
        "--tasks",
        ",".join(tasks),
        "--seeds",
        "0",
        "--jobs",
        str(slots),
    ]
    return [*arguments, *([] if steps is None else ["--set", f"steps={steps}"])]


def _study(folder: Path, arguments: list[str], slots: int) -> list[str]:
    """One row: run the matrix in ``folder`` and split its time. Exits if a run failed."""
    places = ["--store", str(folder / "runs"), "--results", str(folder / "results")]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "bitrank", *arguments, *places], check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"bitrank matrix ended with code {done.returncode}; its output is above")
    with open_store(str(folder / "runs")) as database:
        runs = database.sql('SELECT ended, "m.time/total_s" FROM wide ORDER BY ended').fetchall()
    took = sum(float(seconds) for _, seconds in runs)
    last = runs[-1][0]
    empty = sum((last - ended).total_seconds() for ended, _ in runs[-slots:])
    share = (wall * slots - took - empty) / (wall * slots)
    return [
        str(len(runs)),
        str(slots),
        f"{wall:,.0f}",
        f"{took:,.0f}",
        f"{empty:,.1f}",
        f"{100 * share:.1f} %",
    ]


def _quality(entries: list[dict[str, Any]]) -> str:
    """Quality, time, speed and memory of each run."""
    rows = []
    for entry in entries:
        figures, key = entry["results"], (entry["spec"]["task"], entry["spec"]["config"])
        quality = figures.get("eval/acc", figures.get("eval/ppl"))
        rows.append([
            f"`{key[0]}`", key[1], f"{quality:.3f}",
            f"{figures['time/total_s']:.0f}", f"{figures['speed/train_tok_s']:,.0f}",
            f"{figures['mem/peak_mib']:,.0f}",
        ])  # fmt: skip
    return table(("task", "config", "quality", "seconds", "train tok/s", "peak MiB"), rows)


if __name__ == "__main__":
    sys.exit(main())
