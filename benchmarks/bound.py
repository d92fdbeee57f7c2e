"""Time of a training step by kind of operation, and an upper bound on its speed.

    python benchmarks/bound.py [--configs B-FP,Joint-2] [--tasks movie_sentences] [--rounds 1]

``alone.py`` gives the time of a step and of each of its operations alone, the tuned peer of ``training.py``
its speed. A step cannot be faster than the sum of its operations alone, with warm caches and no Python in
between, however the same operations are arranged. That sum, relative to the peer and to the machine's peak,
is the bound.
"""

from __future__ import annotations

import math
import sys
from functools import partial

from bitrank.process.environment import run_environment
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from harness import (
    STEPS,
    Figures,
    Side,
    alternate,
    cores,
    figure_cell,
    machine,
    machine_line,
    options,
    remeasured,
    report_failures,
    run_scripts,
    script,
    table,
    write_section,
)
from training import PEERS, peer

KINDS = ("base", "thin", "attention", "decoding", "rows", "rest")
_NOTE = """Milliseconds of one step on a batch of median size; median (range) over rounds. *in order*: all its
operations replayed in sequence, without autograd and model code; tensors that a step frees are kept here, so
memory is not reused and a language model can take longer than in the step. *alone*: the sum of all its
operations, each repeated with its own tensors, the fastest repeat of each. *base*: products with frozen
matrices, including a language model's head; *thin*: products of adapters; *attention*: q·kᵀ and the like;
*decoding*: low-bit matrices; *rows*: compiled passes between products; *rest*: all others. *8 tokens*: a step
of one row of 8 tokens, mostly Python and the overhead of calls. The time of a step beyond *alone* is that
overhead and cache misses: in a step, the inputs of an operation are less likely to be in a cache than in
repeated calls. *now*, *in order* and *at most*: tokens/s over those of the tuned peer (of B-FP where †), and
work per token × tokens/s ÷ the peak above, with the time of the step, *in order* and *alone*."""


def main() -> int:
    arguments = options(__doc__, rounds=1).parse_args()
    threads = cores()
    here, parts = machine(threads), list[str]()
    everything: dict[tuple[str, ...], list[Figures]] = {}
    for task in arguments.tasks:
        found = alternate(
            sides(task, arguments.configs, arguments.steps or STEPS[task], threads), arguments.rounds
        )
        here = remeasured(here)
        parts.append(f"### `{task}`\n\n{bounds(found, here, task)}")
        everything |= {(task, *key): rounds for key, rounds in found.items()}
    write_section(
        "bound",
        "\n\n".join(["## A step's operations alone", machine_line(here), *parts, _NOTE]),
        arguments.results,
    )
    return report_failures(everything)


def sides(task: str, configs: list[str], steps: int, threads: int) -> dict[tuple[str, str], Side]:
    """(config, ``alone`` or ``tuned``) → function to run."""
    peers = dict.fromkeys(config if config in PEERS else "B-FP" for config in configs)
    return {(config, "alone"): partial(alone, task, config, threads) for config in configs} | {
        (config, "tuned"): partial(peer, "tuned", task, config, steps, threads) for config in peers
    }


def alone(task: str, config: str, threads: int) -> Figures:
    """The figures of ``alone.py``, in the environment of a run."""
    environment = run_environment(make_spec(find_profile("laptop"), config, task, {"threads": threads}))
    return run_scripts(
        script("alone.py", "--config", config, "--task", task, "--threads", threads), environment=environment
    )[0]


def bounds(found: dict[tuple[str, str], list[Figures]], here: Figures, task: str) -> str:
    """One row per config: the step, its parts alone, current and highest possible speed."""
    head = (
        "config",
        "step",
        "in order",
        "alone",
        *KINDS,
        "8 tokens",
        "÷ tuned now",
        "in order",
        "at most",
        "of peak now",
        "at most",
    )
    peak = here["flops_per_token"][task] / (here["gflops"][here["dtype"]] * 1e9)
    rows = []
    for config, side in found:
        if side != "alone":
            continue
        against = config if config in PEERS else "B-FP"
        tuned = [figures.get("wall_tok_s", math.nan) for figures in found[against, "tuned"]]
        mine = [speeds(one, theirs, peak) for one, theirs in zip(found[config, side], tuned, strict=True)]
        parts = ("step_s", "ordered_s", "alone_s", *(f"{kind}_s" for kind in KINDS), "small_s")
        rows.append([
            f"{config}{'' if against == config else ' †'}",
            *(figure_cell(mine, name, 1, 1000) for name in parts),
            *(figure_cell(mine, name, 2) for name in ("now", "ordered", "most")),
            *(f"{figure_cell(mine, name, 1, 100)} %" for name in ("used", "usable")),
        ])  # fmt: skip
    return table(head, rows)


def speeds(mine: Figures, tuned: float, peak: float) -> Figures:
    """``mine`` with its current and highest possible tokens/s relative to the peer and to the machine's peak.

    ``tuned`` is in tokens/s, ``peak`` in seconds per token at the machine's peak.
    """
    if "failed" in mine:
        return mine
    now, ordered, most = (mine["tokens"] / mine[f"{name}_s"] for name in ("step", "ordered", "alone"))
    return {
        **mine,
        "now": now / tuned,
        "ordered": ordered / tuned,
        "most": most / tuned,
        "used": now * peak,
        "usable": most * peak,
    }


if __name__ == "__main__":
    sys.exit(main())
