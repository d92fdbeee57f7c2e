"""Shared by the benchmarks: alternating processes, paired ratios with spread, and sections of RESULTS.md.

A *side* is one contestant. It runs in its own processes and prints one JSON line of figures. The sides of a
comparison alternate, forwards in one round and backwards in the next, so that a machine that warms up or is
temporarily busy favours none. Ratios are computed within each round; their median and range over rounds are
reported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from bitrank.process.cores import usable_cores
from bitrank.process.tcmalloc import find_tcmalloc

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
FIGURES = HERE / "figures"
CONFIGS = ("B-FP", "B-Q4", "B-Ada", "Joint-2", "Joint-3")
# Optimizer steps of a timed run. Tens suffice: a step takes 0.1 to 1 s, and the first WARM_UP are not
# counted. The sentences need 50 counted steps: the peers sort by length within 50 batches, longest first, and
# longer batches take less time per token.
STEPS = {"movie_sentences": 53, "wiki_articles": 8}
WARM_UP = 3
_HEAD = (
    "# Results\n\nWritten by the scripts in this folder; each one replaces its own section. "
    "[README.md](README.md) explains them.\n"
)

Figures = dict[str, Any]
Side = Callable[[], Figures]
K = TypeVar("K", bound=Hashable)


class SideFailed(Exception):
    """A side ended without figures; the message gives the reason."""


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum over rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        shown = f"{self.median:,.{digits}f}"
        return shown if self.low == self.high else f"{shown} ({self.low:,.{digits}f}–{self.high:,.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum of ``values``. Raises ``ValueError`` if there are none."""
    if not values:
        raise ValueError("a spread needs one value or more, got none; give --rounds 1 or more")
    return Spread(statistics.median(values), min(values), max(values))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The spread of ours ÷ theirs per round. Raises ``ValueError`` if the numbers of rounds differ."""
    if len(ours) != len(theirs):
        raise ValueError(f"rounds must match to be paired, got {len(ours)} and {len(theirs)}")
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def alternate(sides: Mapping[K, Side], rounds: int) -> dict[K, list[Figures]]:
    """Run every side once per round, in alternating order; return the figures of each side by round.

    A failed run has the figures ``{"failed": reason}``.
    """
    found: dict[K, list[Figures]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            started = time.perf_counter()
            try:
                figures = sides[name]()
            except SideFailed as failure:
                figures = {"failed": str(failure)}
            found[name].append(figures)
            label = name if isinstance(name, str) else " ".join(map(str, cast(tuple[object, ...], name)))
            seconds = time.perf_counter() - started
            print(f"round {number + 1} of {rounds}: {label}: {_brief(figures)} [{seconds:.1f} s]", flush=True)
    return found


def values(rounds: Sequence[Figures], key: str) -> list[float]:
    """Figure ``key`` of each round. Raises :class:`SideFailed` if a round failed."""
    for figures in rounds:
        if "failed" in figures:
            raise SideFailed(figures["failed"])
    return [float(figures[key]) for figures in rounds]


def figure_cell(rounds: Sequence[Figures], key: str, digits: int = 0, factor: float = 1.0) -> str:
    """The spread of figure ``key`` times ``factor`` as text, or the reason of a failure."""
    return _cell_text(lambda: spread([factor * value for value in values(rounds, key)]), digits)


def ratio_cell(ours: Sequence[Figures], theirs: Sequence[Figures], key: str) -> str:
    """The paired ratio of figure ``key`` as text."""
    return _cell_text(lambda: paired_ratio(values(ours, key), values(theirs, key)), 2)


def _cell_text(make: Callable[[], Spread], digits: int) -> str:
    try:
        return make().text(digits)
    except SideFailed as failure:
        return f"failed: {str(failure)[:80]}"


def run_scripts(*commands: Sequence[str], environment: Mapping[str, str] | None = None) -> list[Figures]:
    """Run Python with each of ``commands`` concurrently, one process each; return their last JSON lines.

    Raises :class:`SideFailed` if one fails or prints no JSON line.
    """
    full_environment = {**os.environ, **(environment or {})}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=full_environment,
        )
        for command in commands
    ]
    try:
        return [_figures(process, command) for process, command in zip(started, commands, strict=True)]
    finally:
        for process in started:
            process.kill()  # no effect on one that has ended


def _figures(process: subprocess.Popen[str], command: Sequence[str]) -> Figures:
    out, err = process.communicate()
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        message = (err.strip() or out.strip() or "nothing").splitlines()[-1]
        raise SideFailed(f"{Path(command[0]).name} ended with code {process.returncode}: {message}")
    return dict(json.loads(lines[-1]))


def combined(parts: Sequence[Figures]) -> Figures:
    """Combine figures of concurrent processes: speeds and memory are summed, times are the longest."""
    if len(parts) == 1:
        return parts[0]
    added = {
        key: sum(part[key] for part in parts)
        for key in ("tokens", "tok_s", "wall_tok_s", "peak_mib", "device_mib", "import_mib")
    }
    return {**parts[0], **added, "seconds": max(part["seconds"] for part in parts), "processes": len(parts)}


def script(name: str, *arguments: object) -> list[str]:
    """The command of a script in this folder."""
    return [str(HERE / name), *map(str, arguments)]


def machine(threads: int) -> Figures:
    """Processor, its peak speeds with ``threads`` threads, and operations per token, measured now."""
    return run_scripts(
        script("machine.py", "--threads", threads), environment={"OMP_NUM_THREADS": str(threads)}
    )[0]


def remeasured(before: Figures) -> Figures:
    """``before`` with the peaks measured once more, keeping the higher ones.

    Another program may have been busy during the first measurement.
    """
    after = machine(before["threads"])["gflops"]
    return {**before, "gflops": {name: max(speed, after[name]) for name, speed in before["gflops"].items()}}


def machine_line(found: Figures) -> str:
    """One line for a section: the machine and the conditions of its figures."""
    peaks = " and ".join(f"{name} {speed:,.0f}" for name, speed in found["gflops"].items())
    without = "" if "bf16" in found["gflops"] else " (no bf16 instructions)"
    heap = "tcmalloc" if find_tcmalloc() else "the C library"
    return (
        f"{found['hardware']}; {found['threads']} threads; "
        f"matrix products of {found['side']}³ measured here: {peaks} GFLOP/s; "
        f"runs compute in {found['dtype']}{without}; {found['versions']}; "
        f"ours take their memory from {heap}; load before the start {found['load']:.1f}."
    )


def cores() -> int:
    """The number of cores that a run would use (``taskset -c 0,1 python benchmarks/…`` limits it to two)."""
    return usable_cores()


def options(
    about: str | None,
    *,
    rounds: int,
    configs: Sequence[str] = CONFIGS,
    tasks: Sequence[str] = tuple(STEPS),
    steps: Mapping[str, int] = STEPS,
) -> argparse.ArgumentParser:
    """A parser with the common options: ``--rounds --steps --configs --tasks --results``."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"runs of each side (default: {rounds})")
    parser.add_argument("--steps", type=int, help=f"optimizer steps of a timed run (default: {dict(steps)})")
    parser.add_argument(
        "--configs",
        type=_comma_separated,
        default=list(configs),
        help=f"comma-separated (default: {','.join(configs)})",
    )
    parser.add_argument(
        "--tasks",
        type=_comma_separated,
        default=list(tasks),
        help=f"comma-separated (default: {','.join(tasks)})",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="file whose section is replaced (default: benchmarks/RESULTS.md)",
    )
    return parser


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def write_section(name: str, text: str, path: Path = RESULTS) -> None:
    """Replace section ``name`` of the file at ``path`` by ``text``, or append it.

    Raises ``ValueError`` if the file has only one of the two markers.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else _HEAD
    path.write_text(replace_section(before, name, text), encoding="utf-8")
    print(f"\n{text.strip()}\n\nsection {name} of {path.name} written", flush=True)


def replace_section(document: str, name: str, text: str) -> str:
    """``document`` with section ``name`` replaced, or appended."""
    opening, closing = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{opening}\n{text.strip()}\n{closing}"
    if opening not in document and closing not in document:
        return f"{document.rstrip()}\n\n{section}\n"
    head, found_opening, rest = document.partition(opening)
    _, found_closing, tail = rest.partition(closing)
    if not found_opening or not found_closing:
        raise ValueError(
            f"the section {name} needs {opening} before {closing}, found one alone; repair or delete it"
        )
    return head + section + tail


def report_failures(results: Mapping[Any, Sequence[Figures]]) -> int:
    """Print the failures; return 1 if there are any, otherwise 0."""
    failed = {
        str(name): figures["failed"]
        for name, rounds in results.items()
        for figures in rounds
        if "failed" in figures
    }
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return 1 if failed else 0


def _brief(figures: Figures) -> str:
    shown = {
        key: value
        for key, value in figures.items()
        if isinstance(value, int | float | str) and value is not None
    }
    return "  ".join(
        f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in list(shown.items())[:8]
    )


def _comma_separated(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
