"""Training speed and quality against Hugging Face Trainer + PEFT + bitsandbytes.

    python benchmarks/training.py [--rounds 2] [--steps 24] [--configs B-FP,Joint-2] [--tasks movie_sentences]
    python benchmarks/training.py --quality [--seeds 0,1,2]       # complete trainings with tests: takes long

Every side trains the same model on the same texts for the same steps and batch size on all cores. Joint-2 and
Joint-3 have no equivalent peer (none mixes formats), so they are compared with the tuned peer of B-FP. One
more row: two processes of one thread each. Speeds are tokens/s of wall time after the first three steps,
without padding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from harness import (
    STEPS,
    Figures,
    Side,
    SideFailed,
    Spread,
    alternate,
    combined,
    cores,
    figure_cell,
    machine,
    machine_line,
    options,
    ratio_cell,
    remeasured,
    report_failures,
    run_scripts,
    script,
    table,
    values,
    write_section,
)

PEERS = ("B-FP", "B-Q4", "B-Ada")  # configs that the peers support
FULL = {"movie_sentences": 320, "wiki_articles": 30}  # steps of profile laptop
Found = dict[tuple[str, str], list[Figures]]


def main() -> int:
    parser = options(__doc__, rounds=2)
    parser.add_argument(
        "--quality", action="store_true", help="train to the end and test, for every seed of --seeds"
    )
    parser.add_argument("--seeds", default="0,1,2", help="seeds of --quality (default: 0,1,2)")
    arguments = parser.parse_args()
    return _quality(arguments) if arguments.quality else _speed(arguments)


def ours(
    task: str,
    config: str,
    steps: int,
    threads: int,
    processes: int = 1,
    seed: int = 0,
    until: str = "trained",
) -> Figures:
    """Our figures, or the combined ones of concurrent ``processes``."""
    arguments = (
        "--task",
        task,
        "--config",
        config,
        "--steps",
        steps,
        "--threads",
        threads,
        "--seed",
        seed,
        "--until",
        until,
    )
    return run_scripts(script("ours.py", *arguments, "--processes", processes))[0]


def peer(
    kind: str,
    task: str,
    config: str,
    steps: int,
    threads: int,
    processes: int = 1,
    seed: int = 0,
    until: str = "trained",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Figures:
    """The peer's figures, or the combined ones of concurrent ``processes``.

    ``environment`` is set in addition to the number of threads.
    """
    arguments = (
        "--peer",
        kind,
        "--task",
        task,
        "--config",
        config,
        "--steps",
        steps,
        "--threads",
        threads,
        "--until",
        until,
    )
    commands = [script("peers.py", *arguments, "--seed", seed + number) for number in range(processes)]
    return combined(run_scripts(*commands, environment={"OMP_NUM_THREADS": str(threads), **environment}))


def sides_of(task: str, configs: list[str], steps: int, threads: int) -> dict[tuple[str, str], Side]:
    """(config, side) → function to run. SmolLM2's default peer takes 4 s a step, so it runs for B-FP only."""
    sides: dict[tuple[str, str], Side] = {}
    for config in dict.fromkeys([*configs, *(["B-FP"] if set(configs) - set(PEERS) else [])]):
        if config in configs:
            sides[config, "ours"] = partial(ours, task, config, steps, threads)
        if config in PEERS:
            sides[config, "tuned"] = partial(peer, "tuned", task, config, steps, threads)
        if config == "B-FP" or (config in PEERS and task == "movie_sentences"):
            sides[config, "default"] = partial(peer, "default", task, config, steps, threads)
    if threads > 1 and "B-FP" in configs:
        sides["two processes", "ours"] = partial(ours, task, "B-FP", steps, 1, processes=2)
        sides["two processes", "tuned"] = partial(peer, "tuned", task, "B-FP", steps, 1, processes=2)
    return sides


def _speed(arguments: argparse.Namespace) -> int:
    threads = cores()
    before = machine(threads)
    tasks = {
        task: alternate(sides_of(task, arguments.configs, _steps(arguments, task), threads), arguments.rounds)
        for task in arguments.tasks
    }
    here = remeasured(before)
    parts = [
        f"### `{task}`, {_steps(arguments, task)} steps, {arguments.rounds} rounds\n\n"
        + speed_table(found, here, task)
        for task, found in tasks.items()
    ]
    text = "\n\n".join(["## Training speed", machine_line(here), *parts, _NOTE])
    write_section("training", text, arguments.results)
    return report_failures(
        {(task, *key): rounds for task, found in tasks.items() for key, rounds in found.items()}
    )


def _steps(arguments: argparse.Namespace, task: str) -> int:
    return arguments.steps or STEPS[task]


_NOTE = """Padding tokens are not counted. *tuned* and *default* are ours ÷ the peer's tokens/s, median
(range) over rounds. Ours and *tuned* compute in the runs' dtype, *default* in fp32. *of peak*: work per token
× our tokens/s ÷ the peak above of that dtype; work per token = 2·P + 2·P' for frozen block matrices (P'
excludes the first block's query, key and value; both exclude the unused part of a classifier's last block),
and 4·d·V for a language model's head; adapters, attention and norms are not counted. Peaks are of the process
on a CPU, of allocated memory on an accelerator. † no peer mixes formats: compared with the peers of B-FP.
*two processes*: B-FP twice at once, one thread each, speeds added."""


def speed_table(found: Found, here: Figures, task: str) -> str:
    """One row per config: tokens/s of each side, ratios, share of the peak, memory."""
    head = (
        "config",
        "ours tok/s",
        "tuned tok/s",
        "default tok/s",
        "÷ tuned",
        "÷ default",
        "of peak",
        "peak MiB ours / tuned",
    )
    memory_key = "peak_mib" if here["device"] == "cpu" else "device_mib"
    work = here["flops_per_token"][task] / (here["gflops"][here["dtype"]] * 1e9)
    rows = []
    for config in dict.fromkeys(config for config, side in found if side == "ours"):
        against = config if (config, "tuned") in found else "B-FP"
        mine, tuned = found[config, "ours"], found[against, "tuned"]
        default = found.get((against, "default"))
        memory = " / ".join(figure_cell(side, memory_key).partition(" (")[0] for side in (mine, tuned))
        rows.append([
            f"{config}{'' if against == config else ' †'}",
            *(figure_cell(side, "wall_tok_s") if side else "–" for side in (mine, tuned, default)),
            ratio_cell(mine, tuned, "wall_tok_s"),
            ratio_cell(mine, default, "wall_tok_s") if default else "–",
            "–" if config == "two processes" else f"{figure_cell(mine, 'wall_tok_s', 1, 100 * work)} %",
            memory,
        ])  # fmt: skip
    return table(head, rows)


def _quality(arguments: argparse.Namespace) -> int:
    threads, seeds = cores(), [int(word) for word in arguments.seeds.split(",")]
    here, parts = machine(threads), list[str]()
    everything: dict[str, list[Figures]] = {}
    for task in arguments.tasks:
        steps = arguments.steps or FULL[task]
        found: Found = {}
        for seed in seeds:
            for key, rounds in alternate(
                _whole_sides(task, arguments.configs, steps, threads, seed), 1
            ).items():
                found.setdefault(key, []).extend(rounds)
        parts.append(f"### `{task}`, {steps} steps, seeds {arguments.seeds}\n\n{quality_table(found)}")
        everything |= {f"{task} {config} {side}": rounds for (config, side), rounds in found.items()}
    note = (
        "Accuracy (movie_sentences) or perplexity (wiki_articles) on the test set, mean (range) over seeds; "
        "one function evaluates both sides."
    )
    write_section(
        "training-quality",
        "\n\n".join(["## Training to the end: quality beside speed", machine_line(here), *parts, note]),
        arguments.results,
    )
    return report_failures(everything)


def _whole_sides(
    task: str, configs: list[str], steps: int, threads: int, seed: int
) -> dict[tuple[str, str], Side]:
    sides: dict[tuple[str, str], Side] = {}
    for config in configs:
        sides[config, "ours"] = partial(ours, task, config, steps, threads, seed=seed, until="tested")
        if config in PEERS:
            sides[config, "tuned"] = partial(
                peer, "tuned", task, config, steps, threads, seed=seed, until="tested"
            )
    return sides


def quality_table(found: Found) -> str:
    """One row per config and side; our row contains the difference of means."""
    rows = []
    for (config, side), rounds in found.items():
        theirs = found.get((config, "tuned")) if side == "ours" else None
        rows.append([
            config, side, _mean(rounds),
            _difference(rounds, theirs) if theirs else "–",
            figure_cell(rounds, "wall_tok_s"),
            ratio_cell(rounds, theirs, "wall_tok_s") if theirs else "–",
        ])  # fmt: skip
    return table(("config", "side", "quality", "ours − tuned", "tok/s", "÷ tuned"), rows)


def _difference(ours_: list[Figures], theirs: list[Figures]) -> str:
    pairs = [
        b["quality"] - a["quality"]
        for a, b in zip(theirs, ours_, strict=True)
        if "quality" in a and "quality" in b
    ]
    return f"{sum(pairs) / len(pairs):+.4f}" if pairs else "–"


def _mean(rounds: list[Figures]) -> str:
    try:
        found = values(rounds, "quality")
    except SideFailed as failure:
        return f"failed: {failure}"
    return Spread(sum(found) / len(found), min(found), max(found)).text(4)


if __name__ == "__main__":
    sys.exit(main())
