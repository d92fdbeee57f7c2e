"""Interaction correction: measure a whole plan's divergence, and scale the cost of each kind of matrix to it.

The tables contain the loss from each matrix alone. The sum of these losses is misleading at low budgets:
errors meet in the residual stream and amplify each other, so two hundred small ones add up to three times
their sum, while the single embedding adds its own loss. The correction therefore applies a plan to the model
and measures the divergence of its output. It then restores one kind of matrix at a time (matrices that differ
only in the number of their block) and measures again. The divergence that a kind adds in this plan, divided
by the sum of its costs, is the factor of the kind. The scaled costs are planned again, for a few rounds.

The correction starts from several costs of the same choices: those of output errors, and those of the Fisher
estimate. All plans found on the way, with and without factors, are then compared on held-out sequences. The
plan of the first costs without factors is kept unless another one diverges less by more than
:data:`NOISE` standard errors of the paired difference between batches. The correction takes some dozens of
forward passes and no training.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitrank_data import build_once, cache_dir
from bitrank_planner import Effort, Plan, Problem, exact
from bitrank_quant.sensitivity import Divergence

from bitrank.planning.plan_divergence import PlanDivergence, PlanEvaluator, kind_of
from bitrank.process.compute import Compute
from bitrank.sensitivity.calibration import one_thread_per_operation
from bitrank.sensitivity.measure import tables_place
from bitrank.sensitivity.tables import Tables
from bitrank.spec.provenance import code_hash
from bitrank.spec.run_spec import RunSpec

_EFFORT = Effort()
ROUNDS = 2
# Limits a kind's factor to this multiple of the factor of all matrices together, and to its inverse. Larger
# deviations are noise.
_FACTOR_RANGE = 4.0
# Standard errors that a difference between two plans must exceed before the other plan is taken.
NOISE = 2.0
Factors = dict[str, float]


@dataclass(frozen=True)
class Candidate:
    """The exact plan of the costs number ``basis`` with ``factors``."""

    basis: int
    factors: Factors
    plan: Plan


def calibrate_costs(
    problems: Sequence[Problem],
    tables: Tables,
    spec: RunSpec,
    repairs: bool,
    on_progress: Callable[[str], None] = lambda _: None,
    effort: Effort = _EFFORT,
) -> tuple[Problem, float]:
    """Return one of ``problems`` with costs scaled by the factors of their kinds, and the seconds taken.

    ``problems`` differ only in their costs; see the module's description for the choice. Factors are scaled
    so that the plan's predicted cost is its divergence on the held-out sequences. An earlier result is read
    from the cache. ``repairs`` is True if adapters start from the quantization error. ``effort`` limits each
    solution of a problem. Raises
    :class:`~bitrank_planner.PlanError` if no plan fits.
    """
    model = tables_place(spec).name
    code = code_hash("bitrank.planning.interactions")
    key = hashlib.sha256(
        f"{code} {problems!r} {repairs} {spec.quantizer} {effort.seconds}".encode()
    ).hexdigest()[:16]

    def build(folder: Path) -> None:
        started = time.monotonic()
        with one_thread_per_operation(Compute.of(spec).device) as workers:
            evaluator = PlanEvaluator(spec, tables, repairs, workers)
            found = [
                candidate
                for basis, problem in enumerate(problems)
                for candidate in find_candidates(problem, evaluator, basis, on_progress, effort=effort)
            ]
            chosen, divergence = choose(found, evaluator.held_out, on_progress)
        factors = _to_divergence(problems[chosen.basis], chosen, divergence)
        result = {"basis": chosen.basis, "factors": factors, "seconds": time.monotonic() - started}
        (folder / "factors.json").write_text(json.dumps(result))

    kept = json.loads(
        (build_once(cache_dir() / "interplay" / f"{model}-{key}", build) / "factors.json").read_text()
    )
    return scaled(problems[kept["basis"]], kept["factors"]), kept["seconds"]


def choose(
    candidates: Sequence[Candidate],
    evaluate: Callable[[Plan], Divergence],
    on_progress: Callable[[str], None] = lambda _: None,
) -> tuple[Candidate, Divergence]:
    """Return a candidate and its divergence on held-out sequences.

    The first one is replaced by a later one only if that diverges less by more than :data:`NOISE` standard
    errors of their paired difference. Equal plans are evaluated once.
    """
    evaluated: dict[tuple[int, ...], Divergence] = {}
    kept: tuple[Candidate, Divergence] | None = None
    for candidate in candidates:
        choices = candidate.plan.choices
        if choices in evaluated:
            continue
        found = evaluated[choices] = evaluate(candidate.plan)
        if kept is None:
            kept = candidate, found
            continue
        difference, error = found.minus(kept[1])
        on_progress(f"held out: a plan differs by {difference:+.4f} ± {error:.4f} nats of {kept[1].mean:.4f}")
        if difference < -NOISE * error:
            kept = candidate, found
    assert kept is not None  # find_candidates finds one for each problem
    return kept


def _to_divergence(problem: Problem, candidate: Candidate, divergence: Divergence) -> Factors:
    """Return the factors with which the plan's predicted cost is its divergence."""
    alone = costs_by_kind(problem, candidate.plan)
    predicted = sum(candidate.factors[kind] * cost for kind, cost in alone.items())
    ratio = divergence.mean / predicted if predicted > 0 and divergence.mean > 0 else 1.0
    return {kind: factor * ratio for kind, factor in candidate.factors.items()}


def scaled(problem: Problem, factors: Mapping[str, float]) -> Problem:
    """Return ``problem`` with every cost multiplied by the factor of its matrix's kind."""
    return replace(
        problem,
        items=tuple(
            replace(
                item,
                options=tuple(replace(o, cost=o.cost * factors[kind_of(item.name)]) for o in item.options),
            )
            for item in problem.items
        ),
    )


def find_candidates(
    problem: Problem,
    evaluator: PlanEvaluator,
    basis: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
    rounds: int = ROUNDS,
    effort: Effort = _EFFORT,
) -> list[Candidate]:
    """Return the exact plan of the costs as they are, and of ``rounds`` rounds of factors, each measured with
    the plan before it in the model.
    """
    factors: Factors = {kind_of(item.name): 1.0 for item in problem.items}
    found: list[Candidate] = []
    for number in range(rounds + 1):
        found.append(Candidate(basis, factors, exact(scaled(problem, factors), effort)))
        if number == rounds:
            break
        added = evaluator.added(found[-1].plan)
        on_progress(f"costs {basis + 1}, plan {number + 1}: diverges by {added.whole:.4f} nats")
        alone = costs_by_kind(problem, found[-1].plan)
        if not (sum(alone.values()) > 0 and added.whole > 0):
            break
        factors = _next(factors, added, alone, first=number == 0)
    return found


def _next(factors: Factors, added: PlanDivergence, alone: Mapping[str, float], first: bool) -> Factors:
    """Return the factors for the next round.

    A kind's new factor is its added divergence over the sum of its costs. After the first round it is
    averaged with the old one (geometric mean), so that plans do not oscillate.
    """
    overall = added.whole / sum(alone.values())
    found = {}
    for kind, factor in factors.items():
        seen = added.by_kind[kind] / alone[kind] if alone.get(kind) else overall
        seen = min(max(seen, overall / _FACTOR_RANGE), overall * _FACTOR_RANGE)
        found[kind] = seen if first else (factor * seen) ** 0.5
    return found


def costs_by_kind(problem: Problem, plan: Plan) -> dict[str, float]:
    """Return the sum of the problem's costs of each kind of matrix in ``plan``."""
    alone: dict[str, float] = defaultdict(float)
    for item in problem.items:
        chosen = (plan.precision[item.name], plan.ranks.get(item.name, 0))
        alone[kind_of(item.name)] += next(o.cost for o in item.options if (o.format, o.rank) == chosen)
    return dict(alone)
