"""Training speed against the tuned peer, alternating step by step.

    python benchmarks/paired.py [--rounds 1] [--steps 24] [--configs B-FP,Joint-2] [--tasks movie_sentences]

``training.py`` runs one side after the other, and a shared machine may be a third slower for one of them.
Here our steps alternate with the peer's. Model, texts, batch size, steps and threads are equal; both sides
load, wait and train in their own processes. Joint-2 and Joint-3 have no equivalent peer, so they are compared
with the tuned peer of B-FP.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from functools import partial

from bitrank.process.environment import run_environment
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
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
from training import PEERS
from turns import in_turns, parse_step_arguments

# Steps of each side, of which the first WARM_UP are not counted. The peer sorts by length within 50 batches,
# longest first.
STEPS = {"movie_sentences": 53, "wiki_articles": 19}


def main() -> int:
    arguments = parse_step_arguments(options(__doc__, rounds=1, steps=STEPS))
    threads = cores()
    here, parts = machine(threads), list[str]()
    everything: dict[str, list[Figures]] = {}
    for task in arguments.tasks:
        steps = arguments.steps or STEPS[task]
        found = alternate(
            {config: partial(pair, config, task, steps, threads) for config in arguments.configs},
            arguments.rounds,
        )
        parts.append(f"### `{task}`, {steps} steps, rounds: {arguments.rounds}\n\n{_table(found)}")
        everything |= {f"{task} {config}": rounds for config, rounds in found.items()}
    note = (
        "Tokens/s over all counted steps of a side, without padding, and their ratio; over rounds the "
        "median (range). *quartiles*: of the ratios of paired steps, in the last round. † against the peer "
        "of B-FP."
    )
    write_section(
        "training-paired",
        "\n\n".join(["## Training speed, step by step", machine_line(here), *parts, note]),
        arguments.results,
    )
    return report_failures(everything)


def pair(config: str, task: str, steps: int, threads: int) -> Figures:
    """Figures of both sides of one comparison."""
    against = config if config in PEERS else "B-FP"
    arguments = ("--task", task, "--steps", steps, "--threads", threads)
    commands = [
        script("turns.py", "--config", config, *arguments),
        script("peers.py", "--turns", "--peer", "tuned", "--config", against, *arguments),
    ]
    ours = run_environment(make_spec(find_profile("laptop"), config, task, {"threads": threads}))
    theirs = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return figures(*(side[WARM_UP:] for side in in_turns(commands, steps, [ours, theirs])))


def figures(ours: Sequence[Figures], theirs: Sequence[Figures]) -> Figures:
    """Tokens/s of each side over paired steps (two or more), their ratio, and quartiles of step ratios."""
    mine, tuned = (
        sum(step["tokens"] for step in side) / sum(step["seconds"] for step in side)
        for side in (ours, theirs)
    )
    steps = [
        a["tokens"] / a["seconds"] * b["seconds"] / b["tokens"] for a, b in zip(ours, theirs, strict=True)
    ]
    low, _, high = statistics.quantiles(steps, n=4, method="inclusive")
    return {"tok_s": mine, "tuned_tok_s": tuned, "ratio": mine / tuned, "low": low, "high": high}


def _table(found: dict[str, list[Figures]]) -> str:
    rows = [
        [
            f"{config}{'' if config in PEERS else ' †'}",
            figure_cell(rounds, "tok_s"),
            figure_cell(rounds, "tuned_tok_s"),
            figure_cell(rounds, "ratio", 2),
            f"{figure_cell(rounds[-1:], 'low', 2)}–{figure_cell(rounds[-1:], 'high', 2)}",
        ]
        for config, rounds in found.items()
    ]
    return table(("config", "ours tok/s", "tuned tok/s", "÷ tuned", "quartiles"), rows)


if __name__ == "__main__":
    sys.exit(main())
