"""Costs of what a limited rank does not learn, added to a problem: Σ_{k>r} v_k⁺ for rank r.

v_k is the value in nats of direction k of a matrix's change in a probe (:mod:`bitrank.planning.probe`): a
uniform run of a few steps in the formats of a first plan. No constant weighs the term: values and costs of
quantization are both losses per prediction. The values are cached by the formats and the probe's code.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bitrank_adapters import ResidualStart
from bitrank_data import build_once, cache_dir
from bitrank_planner import Effort, Item, Problem, exact
from bitrank_trainer import Diverged

from bitrank.errors import UserError
from bitrank.planning import probe
from bitrank.process.compute import Compute
from bitrank.sensitivity.calibration import one_thread_per_operation
from bitrank.sensitivity.measure import tables_place
from bitrank.sensitivity.tables import Tables
from bitrank.spec.provenance import code_hash
from bitrank.spec.run_spec import RunSpec

_VALUES = "values.json"
_EFFORT = Effort()


@dataclass(frozen=True)
class Learned:
    """v_K in nats by matrix, and the seconds of the probe."""

    values: probe.Values
    seconds: float


def add_learning(
    problem: Problem,
    tables: Tables,
    spec: RunSpec,
    repairs: bool,
    on_progress: Callable[[str], None] = lambda _: None,
    effort: Effort = _EFFORT,
) -> tuple[Problem, float]:
    """Return ``problem`` with the costs of what a limited rank does not learn, and the seconds of the probe.

    The probe has the formats of the exact plan of ``problem``. ``repairs`` is True if adapters start from the
    quantization error. Raises :class:`UserError` if the probe diverges.
    """
    started = time.monotonic()
    first = exact(problem, effort)
    solving = time.monotonic() - started
    on_progress(f"probe: {probe.STEPS} steps at rank {probe.RANK}")
    learned = probe_once(spec, tables, first.precision, repairs)
    return with_learning(problem, learned.values), solving + learned.seconds


def probe_once(spec: RunSpec, tables: Tables, precision: dict[str, str], repairs: bool) -> Learned:
    """Return the values of the probe in the formats ``precision``, from the cache if it ran before."""
    key_parts = (spec.spec_id, json.dumps(precision, sort_keys=True), str(repairs), _code())
    key = hashlib.sha256("\0".join(key_parts).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        started = time.monotonic()
        with one_thread_per_operation(Compute.of(spec).device):
            values = _run(spec, tables, precision, repairs)
        data = {"values": {name: value_K.tolist() for name, value_K in values.items()}}
        (folder / _VALUES).write_text(json.dumps({**data, "seconds": time.monotonic() - started}))

    place = build_once(cache_dir() / "probes" / f"{tables_place(spec).name}-{key}", build)
    data = json.loads((place / _VALUES).read_text())
    return Learned({name: np.array(value_K) for name, value_K in data["values"].items()}, data["seconds"])


def _code() -> str:
    return code_hash("bitrank.planning.probe", rules=frozenset({"GivenBits", "GivenRanks"}))


def _run(spec: RunSpec, tables: Tables, precision: dict[str, str], repairs: bool) -> probe.Values:
    ranks = {m.name: min(probe.RANK, *m.shape) for m in tables.matrices if m.adaptable}
    weights = {name: (moments.row_O, moments.column_I) for name, moments in tables.moments.items()}
    init = ResidualStart(ranks if repairs else {}, rounds=spec.init_rounds, weights=weights)
    try:
        return probe.learned_values(spec, precision, ranks, init)
    except Diverged as error:
        raise UserError(
            f"the probe of what rank learns diverged at learning rate {spec.learning_rate:g}: {error}; "
            "give a smaller one (--set learning_rate=…), or plan with --learning none"
        ) from None


def with_learning(problem: Problem, values: probe.Values) -> Problem:
    """Return ``problem`` with Σ_{k>r} v_k⁺ added to the cost of each option of rank r."""
    return replace(problem, items=tuple(_with_costs(item, values.get(item.name)) for item in problem.items))


def _with_costs(item: Item, value_K: np.ndarray | None) -> Item:
    if value_K is None:
        return item
    missed_R = missed(value_K)
    options = tuple(
        replace(option, cost=option.cost + float(missed_R[min(option.rank, len(missed_R) - 1)]))
        for option in item.options
    )
    return replace(item, options=options)


def missed(value_K: np.ndarray) -> np.ndarray:
    """Return Σ_{k>r} v_k⁺ for r = 0 … K."""
    positive_K = np.maximum(value_K, 0.0)
    return np.concatenate([positive_K[::-1].cumsum()[::-1], [0.0]])
