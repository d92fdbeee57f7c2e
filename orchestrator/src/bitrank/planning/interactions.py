"""Interaction correction: measure a whole plan's divergence, and scale the cost of each kind of matrix to it.

The tables contain the loss from each matrix alone. The sum of these losses is misleading at low budgets:
errors meet in the residual stream and amplify each other, so two hundred small ones add up to three times
their sum, while the single embedding adds its own loss. The correction therefore applies a plan to the model
and measures the divergence of its output. It then restores one kind of matrix at a time (matrices that differ
only in the number of their block) and measures again. The divergence that a kind adds in this plan, divided
by the sum of its costs, is the factor of the kind. The scaled costs are planned again, for a few rounds.

The correction starts from several costs of the same choices: those measured per matrix, and those of the
Fisher estimate, whose plans are as good if single divergences predict joint ones poorly. Of all plans tried,
the one with the least divergence determines costs and factors. The correction takes some dozens of forward
passes and no training.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitrank_adapters import best_low_rank
from bitrank_data import build_once, cache_dir
from bitrank_planner import Plan, Problem, exact
from bitrank_quant import QuantWeight, float_format, parse_format, swap_weights, with_weight
from bitrank_quant.sensitivity import Modules, Replay, compute_dtype, modules_of, weight_of
from bitrank_trainer import narrow_last_block

from bitrank.sensitivity.calibration import calibration, whole_machine
from bitrank.sensitivity.measure import tables_place
from bitrank.sensitivity.tables import Tables
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.provenance import code_hash

ROUNDS = 2
# Limits a kind's factor to this multiple of the factor of all matrices together, and to its inverse. Larger
# deviations are noise.
_FACTOR_RANGE = 4.0
Factors = dict[str, float]


@dataclass(frozen=True)
class Added:
    """The divergence that a plan adds, in nats.

    ``whole`` is that of the plan; ``by_kind`` that of each kind of matrix while the other kinds stay
    quantized.
    """

    whole: float
    by_kind: Mapping[str, float]


def kind_of(matrix: str) -> str:
    """Return the name of a matrix without the number of its block."""
    return re.sub(r"\.\d+\.", ".*.", matrix)


def calibrate_costs(
    problems: Sequence[Problem],
    tables: Tables,
    spec: RunSpec,
    repairs: bool,
    on_progress: Callable[[str], None] = lambda _: None,
) -> tuple[Problem, float]:
    """Return the best of ``problems`` with costs scaled by the factors of their kinds, and the seconds taken.

    ``problems`` differ only in their costs; the best one has the plan with the least divergence. An earlier
    result is read from the cache. ``repairs`` is True if adapters start from the quantization error. Raises
    :class:`~bitrank_planner.PlanError` if no plan fits.
    """
    model = tables_place(spec).name
    code = code_hash("bitrank.planning.interactions")
    key = hashlib.sha256(f"{code} {problems!r} {repairs}".encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        started = time.monotonic()
        with whole_machine():
            bench = Bench(spec, tables, repairs)
            found = [find_factors(problem, bench, on_progress) for problem in problems]
        (folder / "factors.json").write_text(
            json.dumps({"found": found, "seconds": time.monotonic() - started})
        )

    kept = json.loads(
        (build_once(cache_dir() / "interplay" / f"{model}-{key}", build) / "factors.json").read_text()
    )
    problem, (_, factors) = min(zip(problems, kept["found"], strict=True), key=lambda one: one[1][0])
    return scaled(problem, factors), kept["seconds"]


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


def find_factors(
    problem: Problem, bench: Bench, on_progress: Callable[[str], None] = lambda _: None, rounds: int = ROUNDS
) -> tuple[float, Factors]:
    """Return the least divergence (nats) of the exact plans of ``rounds`` rounds, and its plan's factors.

    The factors are scaled so that the plan's predicted cost equals its divergence.
    """
    factors: Factors = {kind_of(item.name): 1.0 for item in problem.items}
    tried: list[tuple[float, Factors]] = []
    for number in range(rounds + 1):
        plan = exact(scaled(problem, factors))
        added = bench.added(plan)
        on_progress(f"plan {number + 1} of {rounds + 1}: diverges by {added.whole:.4f} nats")
        alone = costs_by_kind(problem, plan)
        total = sum(alone.values())
        if not (total > 0 and added.whole > 0):
            return added.whole, factors
        predicted = sum(factors[kind] * cost for kind, cost in alone.items())
        tried.append(
            (added.whole, {kind: factor * added.whole / predicted for kind, factor in factors.items()})
        )
        factors = _next(factors, added, alone, first=number == 0)
    # The last of equal plans: its factors come from the most measurements.
    return min(reversed(tried), key=lambda one: one[0])


def _next(factors: Factors, added: Added, alone: Mapping[str, float], first: bool) -> Factors:
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


class Bench:
    """The model of ``spec`` on its calibration data, with operations to apply and remove plans.

    A plan's matrices are stored beside the model's own: in their formats, or in the dtype of the model's
    weights if a repair was added.
    """

    def __init__(self, spec: RunSpec, tables: Tables, repairs: bool) -> None:
        self._tables, self._repairs = tables, repairs
        ready = calibration(spec)
        narrow_last_block(ready.model)  # only the model's output is used
        self._model, self._replay = ready.model, Replay(ready.model, ready.joint, ready.forward)
        self._kept = {
            m.name: modules_of(ready.model, m.name, ready.matrices)
            for m in ready.matrices
            if m.tied_to is None
        }
        self._planned: dict[str, tuple[tuple[str, int], Modules]] = {}

    def added(self, plan: Plan) -> Added:
        """Return the divergence that ``plan`` adds. The model is restored afterwards."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in self._kept:
            kinds[kind_of(name)].append(name)
        try:
            for name in self._kept:
                swap_weights(
                    self._model, self._as_planned(name, plan.precision[name], plan.ranks.get(name, 0))
                )
            whole = self._divergence()
            return Added(whole, {kind: whole - self._without(names) for kind, names in kinds.items()})
        finally:
            self._put_back(self._kept)

    def _without(self, names: Iterable[str]) -> float:
        self._put_back(names)
        divergence = self._divergence()
        for name in names:
            swap_weights(self._model, self._planned[name][1])
        return divergence

    def _put_back(self, names: Iterable[str]) -> None:
        for name in names:
            swap_weights(self._model, self._kept[name])

    def _divergence(self) -> float:
        return self._replay.evaluate_from(None, first=True)[1]

    def _as_planned(self, name: str, text: str, rank: int) -> Modules:
        """Return the matrix in its format, with the best repair of ``rank``.

        The matrix is cached until its format or rank changes.
        """
        if name not in self._planned or self._planned[name][0] != (text, rank):
            self._planned[name] = (
                (text, rank),
                with_weight(self._stored(name, text, rank), self._kept[name]),
            )
        return self._planned[name][1]

    def _stored(self, name: str, text: str, rank: int) -> QuantWeight:
        module = self._kept[name][name]
        weight_OI, dtype = weight_of(module), compute_dtype(module)
        stored = QuantWeight(weight_OI, parse_format(text), dtype)
        if not (rank and self._repairs):
            return stored
        made_OI, moments = stored.decode().float(), self._tables.moments[name]
        lost_OI = weight_OI.float() - made_OI
        made_OI += best_low_rank(lost_OI, rank, (moments.row_O, moments.column_I)).product()
        return QuantWeight(made_OI, float_format(weight_OI.dtype), dtype)
