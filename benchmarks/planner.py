"""Time of the exact planner, against HiGHS on the unreduced program.

    python benchmarks/planner.py [--rounds 3] [--matrices 36,126,210,882,2000] [--limit 60]

Each round is another instance: seven matrices per block with the shapes of SmolLM2-135M, 40 options each
(five formats at eight ranks), and costs that fall with bits and rank as measured ones do, with a random scale
and slope per matrix and noise. *plain* is ``scipy.optimize.milp`` on all options, to the same relative gap of
1e-6, with a time limit. Both sides solve in one process, alternating; gaps are relative to the bound that the
plain side proved, or to that of the linear relaxation if it is higher.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bitrank.process.hardware import hardware
from bitrank_planner import GAP, Item, Option, Problem, exact
from harness import RESULTS, paired_ratio, spread, table, write_section
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

FORMATS = {"int2-g64": 2.5, "int3-g64": 3.5, "int4-g64": 4.5, "int8-g64": 8.5, "bf16": 16.0}
RANKS = (0, 2, 4, 8, 16, 32, 48, 64)
SHAPES = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
BITS = 4.25  # budget in bits per weight, adapters included


@dataclass(frozen=True)
class Solved:
    """Seconds, the plan's cost (infinite if none was found in time), and a proven lower ``bound``."""

    seconds: float
    cost: float
    bound: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="instances of each size (default: 3)")
    parser.add_argument("--matrices", default="36,126,210,882,2000", help="sizes, comma-separated")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="time limit of the plain side in seconds (default: 60)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="file whose section is replaced (default: benchmarks/RESULTS.md)",
    )
    arguments = parser.parse_args()
    load, rows = os.getloadavg()[0], []
    for matrices in map(int, arguments.matrices.split(",")):
        rows.append(compare(matrices, arguments.rounds, arguments.limit))
        print(rows[-1], flush=True)
    head = ("matrices", "exact s", "gap", "plain milp s", "gap", "plain ÷ exact")
    where = f"{hardware('cpu')}; one process; load before the start {load:.1f}."
    note = (
        f"Median (range) over {arguments.rounds} instances of 40 options a matrix, {BITS} bits a weight. "
        "*gap*: the plan's cost over the best known bound, the worst of the instances; plain HiGHS also "
        f"ends at an absolute gap of 1e-6. >: it was stopped after {arguments.limit:.0f} s on some "
        "instances, so the ratio is at least that."
    )
    write_section(
        "planner", f"## The exact planner\n\n{where}\n\n{table(head, rows)}\n\n{note}", arguments.results
    )
    return 0


def compare(matrices: int, rounds: int, limit: float) -> list[str]:
    """One row: both sides on ``rounds`` instances with ``matrices`` matrices."""
    ours, theirs = list[Solved](), list[Solved]()
    for seed in range(rounds):
        problem = instance(matrices, seed)
        sides = [
            (ours, lambda problem=problem: solve_exact(problem)),
            (theirs, lambda problem=problem: solve_plain(problem, limit)),
        ]
        for found, side in sides if seed % 2 == 0 else sides[::-1]:
            found.append(side())
    bounds = [max(a.bound, b.bound) for a, b in zip(ours, theirs, strict=True)]
    stopped = "> " if any(side.seconds >= limit for side in theirs) else ""
    ratio = paired_ratio([side.seconds for side in theirs], [side.seconds for side in ours])
    seconds = [spread([side.seconds for side in found]).text() for found in (ours, theirs)]
    return [
        f"{matrices:,}",
        seconds[0],
        _gap(ours, bounds),
        stopped + seconds[1],
        _gap(theirs, bounds),
        stopped + ratio.text(1),
    ]


def _gap(found: Sequence[Solved], bounds: Sequence[float]) -> str:
    worst = max(side.cost / bound - 1 for side, bound in zip(found, bounds, strict=True))
    return f"{worst:.1e}" if math.isfinite(worst) else "no plan"


def instance(matrices: int, seed: int) -> Problem:
    """A problem of ``matrices`` matrices with 40 options each."""
    random = np.random.default_rng(seed)
    items = tuple(
        _matrix(f"m{number}", SHAPES[number % 7], number // 7, random) for number in range(matrices)
    )
    return Problem(items, int(BITS * sum(math.prod(item.shape) for item in items) / 8))


def _matrix(name: str, shape: tuple[int, int], layer: int, random: np.random.Generator) -> Item:
    scale, slope = float(np.exp(random.normal(-3, 1.5))), float(random.uniform(0.05, 0.4))
    options = []
    for fmt, bits in FORMATS.items():
        for rank in RANKS:
            cost = scale * 4 ** (2.5 - bits) * (1 + rank) ** -slope * float(np.exp(random.normal(0, 0.05)))
            options.append(
                Option(
                    fmt,
                    rank,
                    int(bits * math.prod(shape) / 8) + 4 * rank * sum(shape),
                    cost,
                    rank * sum(shape),
                )
            )
    return Item(name, tuple(options), "other", layer, shape)


def solve_exact(problem: Problem) -> Solved:
    """Solve ``problem`` with our planner."""
    started = time.perf_counter()
    plan = exact(problem)
    return Solved(time.perf_counter() - started, plan.cost, -math.inf)


def solve_plain(problem: Problem, limit: float) -> Solved:
    """Solve the unreduced program with HiGHS; the time excludes the linear relaxation."""
    options = [(number, option) for number, item in enumerate(problem.items) for option in item.options]
    cost_X = np.array([option.cost for _, option in options])
    bytes_X = np.array([[option.nbytes for _, option in options]], dtype=float)
    one_each = csr_array(
        (np.ones(len(options)), ([number for number, _ in options], np.arange(len(options))))
    )
    started = time.perf_counter()
    found = milp(
        cost_X,
        integrality=np.ones_like(cost_X),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(bytes_X, -np.inf, problem.available)],
        options={"mip_rel_gap": GAP, "time_limit": limit},
    )
    seconds = time.perf_counter() - started
    relaxed = linprog(
        cost_X, bytes_X, [problem.available], one_each, np.ones(one_each.shape[0]), method="highs"
    )
    bound = max(relaxed.fun, -math.inf if found.mip_dual_bound is None else found.mip_dual_bound)
    return Solved(seconds, math.inf if found.x is None else float(found.fun), bound)


if __name__ == "__main__":
    sys.exit(main())
