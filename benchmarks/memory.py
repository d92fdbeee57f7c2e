"""Memory of a run: against the tuned peer, while loading, and under a hard limit.

    python benchmarks/memory.py [--rounds 1] [--steps 8] [--configs B-FP,B-Q4] [--limit 1610612736]

Memory is the peak resident set (VmHWM) minus that of imports, up to the last training step, including our
test before training. *Loading* is the increase of the peak while the base is read and quantized
(``loading.py``); its bound is 1.1 × (stored bytes + the largest matrix in fp32). Our runs use tcmalloc if it
is installed; the tuned peer uses the C library's allocator, and tcmalloc in another run. The limit is
RLIMIT_DATA: the operating system refuses private writable memory (heap, arrays, quantized weights) beyond it,
even if untouched. Pages of shared libraries do not count there, so the whole resident peak is shown as well.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from bitrank.process.environment import run_environment
from bitrank.process.tcmalloc import find_tcmalloc, heap_environment
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from harness import (
    STEPS,
    Figures,
    SideFailed,
    alternate,
    cores,
    figure_cell,
    machine,
    machine_line,
    options,
    ratio_cell,
    report_failures,
    run_scripts,
    script,
    table,
    values,
    write_section,
)
from training import PEERS, peer

_GIB = 2**30
_SAME = "tuned, with tcmalloc"


def main() -> int:
    parser = options(__doc__, rounds=1, configs=("B-FP", "B-Q4", "Joint-2"))
    parser.add_argument(
        "--limit", type=int, default=3 * _GIB // 2, help="bytes of the hard limit (default: 1.5 GiB)"
    )
    parser.add_argument(
        "--limit-config", default="B-FP", help="config that trains under the limit (default: B-FP)"
    )
    arguments = parser.parse_args()
    threads = cores()
    everything: dict[str, list[Figures]] = {}
    parts = ["## Memory", machine_line(machine(threads))]
    for task in arguments.tasks:
        steps = arguments.steps or STEPS[task]
        found = alternate(_sides(task, arguments.configs, steps, threads), arguments.rounds)
        parts.append(f"### `{task}`, {steps} steps\n\n{_table(found)}")
        everything |= {f"{task} {config} {side}": rounds for (config, side), rounds in found.items()}
    if "wiki_articles" in arguments.tasks:
        text, found_limited = _limited(arguments, threads)
        parts.append(text)
        everything |= found_limited
    write_section("memory", "\n\n".join(parts), arguments.results)
    return report_failures(everything)


def _complete_run(task: str, config: str, steps: int, threads: int, *more: object) -> Figures:
    arguments = (
        "--task",
        task,
        "--config",
        config,
        "--steps",
        steps,
        "--threads",
        threads,
        "--until",
        "tested",
        *more,
    )
    windows = ("--set", "test_windows=1", "--set", "validation_windows=1") if task == "wiki_articles" else ()
    found = run_scripts(script("ours.py", *arguments, *windows))[0]
    return {**found, "over_mib": found["peak_mib"] - found["import_mib"]}


def _ours(task: str, config: str, steps: int, threads: int) -> Figures:
    """A complete run, and loading its base alone."""
    spec = make_spec(find_profile("laptop"), config, task, {"threads": threads})
    loading = run_scripts(
        script("loading.py", "--task", task, "--config", config), environment=run_environment(spec)
    )[0]
    bound = 1.1 * (loading["stored_mib"] + loading["largest_fp32_mib"])
    return {**_complete_run(task, config, steps, threads), **loading, "bound_mib": bound}


def _peer(task: str, config: str, steps: int, threads: int, preloaded: bool) -> Figures:
    found = peer(
        "tuned",
        task,
        config,
        steps,
        threads,
        environment=heap_environment(limited=False) if preloaded else {},
    )
    return {**found, "over_mib": found["peak_mib"] - found["import_mib"]}


def _sides(
    task: str, configs: list[str], steps: int, threads: int
) -> dict[tuple[str, str], partial[Figures]]:
    sides = {(config, "ours"): partial(_ours, task, config, steps, threads) for config in configs}
    against = dict.fromkeys(config if config in PEERS else "B-FP" for config in configs)
    kinds = {"tuned": False} | ({_SAME: True} if find_tcmalloc() else {})
    peers = {
        (config, kind): partial(_peer, task, config, steps, threads, same)
        for config in against
        for kind, same in kinds.items()
    }
    return sides | peers


def _table(found: dict[tuple[str, str], list[Figures]]) -> str:
    head = (
        "config",
        "ours, peak MiB",
        "over imports",
        "tuned, peak MiB",
        "over imports",
        "÷ tuned",
        "÷ tuned with tcmalloc",
        "loading",
        "loading ÷ bound",
    )
    rows = []
    for config in [config for config, side in found if side == "ours"]:
        against = config if config in PEERS else "B-FP"
        mine, tuned, same = found[config, "ours"], found[against, "tuned"], found.get((against, _SAME))
        rows.append(
            [config if config in PEERS else f"{config} †"]
            + [figure_cell(side, key) for side in (mine, tuned) for key in ("peak_mib", "over_mib")]
            + [ratio_cell(mine, tuned, "over_mib"), ratio_cell(mine, same, "over_mib") if same else "–"]
            + [figure_cell(mine, "loading_mib"), _loading(mine)]
        )
    return f"{table(head, rows)}\n\n÷ tuned: of the peaks over imports. † against the tuned peer of B-FP."


def _loading(rounds: list[Figures]) -> str:
    try:
        pairs = zip(values(rounds, "loading_mib"), values(rounds, "bound_mib"), strict=True)
        return f"{max(a / b for a, b in pairs):.2f}"
    except SideFailed:
        return "failed"


def _limited(arguments: argparse.Namespace, threads: int) -> tuple[str, dict[str, list[Figures]]]:
    """The same training without and with the limit, and the difference of their loss curves."""
    steps, limit = arguments.steps or STEPS["wiki_articles"], arguments.limit
    run = partial(
        _complete_run, "wiki_articles", arguments.limit_config, steps, threads, "--set", "log_every=1"
    )
    sides = {
        "unlimited": run,
        "limited": partial(run, "--set", f"memory_limit={limit}", "--data-limit", limit),
    }
    found = alternate(sides, 1)
    rows = [
        [
            name,
            figure_cell(rounds, "end_mib"),
            figure_cell(rounds, "wall_tok_s"),
            figure_cell(rounds, "loss", 4),
        ]
        for name, rounds in found.items()
    ]
    shown = table(("run", "peak MiB, whole run", "tok/s", "last training loss"), rows)
    title = f"### SmolLM2 under {limit / _GIB:.2f} GiB, {arguments.limit_config}, {steps} steps"
    how = (
        f"RLIMIT_DATA = {limit} bytes and `--memory-limit {limit}`; the run is trained and tested inside it. "
        + _loss_difference(found)
    )
    return f"{title}\n\n{shown}\n\n{how}", found


def _loss_difference(found: dict[str, list[Figures]]) -> str:
    free, bound = found["unlimited"][0], found["limited"][0]
    if "failed" in free or "failed" in bound:
        return "The loss curves cannot be compared: a run failed."
    shared = sorted(set(free["losses"]) & set(bound["losses"]), key=int)
    gap = max(abs(free["losses"][step] - bound["losses"][step]) for step in shared)
    return f"Largest difference of the training loss over {len(shared)} steps: {gap:.4f} nats."


if __name__ == "__main__":
    sys.exit(main())
