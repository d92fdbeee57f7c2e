"""Do the costs of what rank learns order plans that differ in rank only? Spearman correlation.

    python benchmarks/rank_learning.py [--task movie_sentences] [--steps 320] [--seeds 0]
    python benchmarks/rank_learning.py --report         # the section of the page from what was measured

All plans have the formats of B-Q4 and adapters that start from zero, so rank repairs nothing and only learns.
Each plan is trained for ``--steps`` and its loss on the validation split is measured: uniform ranks 2 to 64,
and, at the trainable parameters of uniform rank 8, adapters in attention alone, in the feed-forward matrices
alone, in the early or the late blocks alone, ranks that rise or fall with depth, and random ranks. The
prediction of a plan is the sum of its costs from the probe (bitrank.planning.learning). Every measurement is
appended to ``--journal`` as it is made; a repeated command measures what the journal lacks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from bitrank.planning.budget import sizes_of
from bitrank.planning.learning import missed
from bitrank.planning.probe import RANK, learned_values
from bitrank.planning.short_runs import build_arm, train_briefly
from bitrank.run.data import load_data
from bitrank.spec.configs import Config, find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.rules import GivenBits, GivenRanks
from bitrank.spec.run_spec import RunSpec
from bitrank_adapters import ResidualStart
from bitrank_quant import WeightMatrix
from harness import table, write_section
from scipy.stats import permutation_test, rankdata, spearmanr

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "rank-learning.md"

UNIFORM = (2, 4, 8, 16, 32, 64)
EQUAL_TO = 8  # the other plans have the trainable parameters of this uniform rank
RANDOM = 5
_ALL_ORDERS = 9  # plans up to which every order is counted for a p-value: 9! = 362,880
Ranks = dict[str, int]


def plans_of(matrices: list[WeightMatrix]) -> dict[str, Ranks]:
    """Return the ranks of every plan by the plan's name, for the block matrices ``matrices``."""
    layers = 1 + max(m.layer or 0 for m in matrices)
    shapes: dict[str, Callable[[WeightMatrix], float]] = {
        "attention only": lambda m: float(m.role == "attention"),
        "feed-forward only": lambda m: float(m.role == "ffn"),
        "early blocks only": lambda m: float((m.layer or 0) < layers / 2),
        "late blocks only": lambda m: float((m.layer or 0) >= layers / 2),
        "rising with depth": lambda m: 1.0 + (m.layer or 0),
        "falling with depth": lambda m: float(layers - (m.layer or 0)),
    }
    plans = {f"uniform {rank}": {m.name: rank for m in matrices} for rank in UNIFORM}
    plans |= {name: at_size(matrices, {m.name: shape(m) for m in matrices}) for name, shape in shapes.items()}
    for number in range(RANDOM):
        drawn = np.random.default_rng(number).choice([0, 1, 2, 4, 8, 16], len(matrices))
        shares = {m.name: float(share) for m, share in zip(matrices, drawn, strict=True)}
        plans[f"random {number + 1}"] = at_size(matrices, shares)
    return plans


def at_size(matrices: list[WeightMatrix], shares: Mapping[str, float]) -> Ranks:
    """Return ranks in proportion to ``shares`` with about the parameters of uniform rank 8, not more."""
    limit = sum(EQUAL_TO * sum(m.shape) for m in matrices)
    low, high = 0.0, 1e4
    for _ in range(60):
        factor = (low + high) / 2
        ranks = {m.name: min(round(factor * shares[m.name]), min(m.shape)) for m in matrices}
        fits = sum(ranks[m.name] * sum(m.shape) for m in matrices) <= limit
        low, high = (factor, high) if fits else (low, factor)
    return {m.name: min(round(low * shares[m.name]), min(m.shape)) for m in matrices}


def spec_of(task: str, steps: int, seed: int) -> RunSpec:
    """The B-Q4 run of ``task`` in the profile ``laptop``, for ``steps`` steps."""
    settings = {"steps": steps, "seed": seed}
    return replace(make_spec(find_profile("laptop"), "B-Q4", task, settings), init="default")


def measured_loss(spec: RunSpec, formats: dict[str, str], ranks: Ranks) -> float:
    """Train with ``ranks``; return the loss in nats on the validation split."""
    data = load_data(spec)
    given = GivenRanks({name: rank for name, rank in ranks.items() if rank})
    built = build_arm(spec, data, Config(GivenBits(formats), given, "joint"), ResidualStart({}))
    with TemporaryDirectory() as folder:
        return train_briefly(spec, data, data.validation, built, Path(folder))


def measure(task: str, steps: int, seeds: list[int], journal: Path) -> None:
    """Measure every plan that ``journal`` lacks and append its loss."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    known = {(row["task"], row["steps"], row["seed"], row["plan"]) for row in rows_of(journal)}
    for seed in seeds:
        spec = spec_of(task, steps, seed)
        matrices = list(sizes_of(spec).matrices.values())
        formats = find_config("B-Q4").precision.assign_formats(matrices)
        for name, ranks in plans_of([m for m in matrices if m.adaptable]).items():
            key = {"task": task, "steps": steps, "seed": seed, "plan": name}
            if tuple(key.values()) in known:
                continue
            started = time.monotonic()
            loss = measured_loss(spec, formats, ranks)
            row = {**key, "loss": loss, "seconds": time.monotonic() - started, "ranks": ranks}
            with journal.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"seed {seed} {name}: {loss:.4f} nats, {row['seconds']:.0f} s", flush=True)


def rows_of(journal: Path) -> list[dict[str, Any]]:
    """Return the measurements in ``journal``; empty if it does not exist."""
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []


def predicted(task: str, steps: int, plans: Mapping[str, Ranks]) -> tuple[dict[str, float], float]:
    """Return the cost in nats of what each plan does not learn by the probe, and the probe's seconds."""
    started = time.monotonic()
    spec = spec_of(task, steps, seed=0)
    matrices = list(sizes_of(spec).matrices.values())
    formats = find_config("B-Q4").precision.assign_formats(matrices)
    ranks = {m.name: min(RANK, *m.shape) for m in matrices if m.adaptable}
    missed_by = {
        name: missed(value_K)
        for name, value_K in learned_values(spec, formats, ranks, ResidualStart({})).items()
    }
    costs = {
        plan: sum(
            float(missed_R[min(chosen[name], len(missed_R) - 1)]) for name, missed_R in missed_by.items()
        )
        for plan, chosen in plans.items()
    }
    return costs, time.monotonic() - started


def report(task: str, steps: int, journal: Path) -> None:
    """Write the section of ``task`` in the page: predictions, losses, and their rank correlations."""
    rows = [row for row in rows_of(journal) if (row["task"], row["steps"]) == (task, steps)]
    plans = {row["plan"]: row["ranks"] for row in rows}
    losses = {plan: statistics.mean(row["loss"] for row in rows if row["plan"] == plan) for plan in plans}
    costs, seconds = predicted(task, steps, plans)
    baseline = losses["uniform 8"]
    ordered = sorted(plans, key=losses.__getitem__)
    body = table(
        ("plan", "cost by the probe, nats", "validation loss", "against uniform 8"),
        [
            [plan, f"{costs[plan]:.5f}", f"{losses[plan]:.4f}", f"{losses[plan] - baseline:+.4f}"]
            for plan in ordered
        ],
    )
    equal = [plan for plan in plans if not plan.startswith("uniform") or plan == "uniform 8"]
    uniform = [plan for plan in plans if plan.startswith("uniform")]
    groups = {
        "all plans": list(plans),
        f"plans of the size of uniform {EQUAL_TO}": equal,
        "uniform ranks": uniform,
    }
    lines = [
        f"- {label} ({len(names)}): {correlation(names, costs, losses)}" for label, names in groups.items()
    ]
    seeds = sorted({row["seed"] for row in rows})
    text = (
        f"{len(plans)} plans of {task}, {steps} steps, seeds {', '.join(map(str, seeds))}, formats of B-Q4; "
        f"the probe took {seconds:.0f} s. Spearman correlation of cost and loss:\n\n"
        + "\n".join(lines)
        + f"\n\n{body}"
    )
    write_section(task, text, PAGE)


def correlation(plans: Sequence[str], costs: Mapping[str, float], losses: Mapping[str, float]) -> str:
    """Return Spearman's ρ with its two-sided p-value, for ``plans``.

    p is exact, over all orders, for up to 9 plans; for more the approximation by Student's t is close.
    """
    x, y = rankdata([costs[plan] for plan in plans]), rankdata([losses[plan] for plan in plans])
    found = spearmanr(x, y)
    p = found.pvalue
    if len(plans) <= _ALL_ORDERS:
        exact = permutation_test(
            (x,),
            lambda orders, axis: np.sum((orders - x.mean()) * (y - y.mean()), axis=axis),
            permutation_type="pairings",
            vectorized=True,
            n_resamples=np.inf,
        )
        p = exact.pvalue
    return f"ρ = {found.statistic:.2f} (p = {p:.2f})"


def main() -> None:
    """Measure what the journal lacks and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="movie_sentences")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--seeds", type=_whole, default=[0], help="comma-separated")
    parser.add_argument("--journal", type=Path, default=PAGE.with_suffix(".jsonl"))
    parser.add_argument("--report", action="store_true", help="write the page from what was measured")
    arguments = parser.parse_args()
    if not arguments.report:
        measure(arguments.task, arguments.steps, arguments.seeds, arguments.journal)
    report(arguments.task, arguments.steps, arguments.journal)


def _whole(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
