"""Divergence of a whole plan: the plan applied to the model of a run, on its calibration data."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from bitrank_adapters import best_low_rank
from bitrank_planner import Plan
from bitrank_quant import Format, QuantWeight, float_format, parse_format, swap_weights, with_weight
from bitrank_quant.sensitivity import (
    Divergence,
    Modules,
    Replay,
    compute_dtype,
    modules_of,
    side_by_side,
    stored_in,
    weight_of,
)
from bitrank_trainer import narrow_last_block
from torch import nn

from bitrank.run.quantizers import encoder
from bitrank.sensitivity.calibration import calibration
from bitrank.sensitivity.tables import Tables
from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class PlanDivergence:
    """The divergence that a plan adds, in nats.

    ``whole`` is that of the plan; ``by_kind`` that of each kind of matrix while the other kinds stay
    quantized.
    """

    whole: float
    by_kind: Mapping[str, float]


def kind_of(matrix: str) -> str:
    """Return the name of a matrix without the number of its block."""
    return re.sub(r"\.\d+\.", ".*.", matrix)


class PlanEvaluator:
    """The model of ``spec`` on its calibration data, with operations to apply and remove plans.

    A plan's matrices are stored beside the model's own: in their formats, or in the dtype of the model's
    weights if a repair was added. ``workers`` matrices or batches are computed at the same time.
    """

    def __init__(self, spec: RunSpec, tables: Tables, repairs: bool, workers: int = 1) -> None:
        self._tables, self._repairs, self._workers = tables, repairs, workers
        self._encode = encoder(spec)
        ready = calibration(spec)
        narrow_last_block(ready.model)  # only the model's output is used
        # Every pass runs the whole model, so no block's output is recorded.
        self.model = ready.model
        self._replay, self._others = (
            Replay(ready.model, batches, ready.forward, blocks=(), workers=workers)
            for batches in (ready.joint, ready.held_out)
        )
        self._kept = {
            m.name: modules_of(ready.model, m.name, ready.matrices)
            for m in ready.matrices
            if m.tied_to is None
        }
        self._planned: dict[str, tuple[tuple[str, int], Modules]] = {}

    def added(self, plan: Plan) -> PlanDivergence:
        """Return the divergence that ``plan`` adds, whole and by kind."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in self._kept:
            kinds[kind_of(name)].append(name)
        with self.applied(plan.precision, plan.ranks):
            whole = self._divergence()
            return PlanDivergence(
                whole, {kind: whole - self._without(names) for kind, names in kinds.items()}
            )

    def held_out(self, plan: Plan) -> Divergence:
        """Return the divergence of ``plan`` on the held-out sequences, by batch."""
        with self.applied(plan.precision, plan.ranks):
            return self._others.divergence()

    @contextmanager
    def applied(self, precision: Mapping[str, str], ranks: Mapping[str, int]) -> Iterator[None]:
        """Apply formats and repairs to the model while the context is open."""
        try:
            made = side_by_side(
                lambda name: self._as_planned(name, precision[name], ranks.get(name, 0)),
                self._kept,
                self._workers,
            )
            for modules in made:
                swap_weights(self.model, modules)
            yield
        finally:
            self._put_back(self._kept)

    def _without(self, names: Iterable[str]) -> float:
        self._put_back(names)
        divergence = self._divergence()
        for name in names:
            swap_weights(self.model, self._planned[name][1])
        return divergence

    def _put_back(self, names: Iterable[str]) -> None:
        for name in names:
            swap_weights(self.model, self._kept[name])

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
        module, moments = self._kept[name][name], self._tables.moments[name]
        stored = self._quantized(name, module, parse_format(text))
        if not (rank and self._repairs):
            return stored
        weight_OI, made_OI = weight_of(module), stored.decode().float()
        lost_OI = weight_OI.float() - made_OI
        made_OI += best_low_rank(lost_OI, rank, (moments.row_O, moments.column_I)).product()
        return QuantWeight(made_OI, float_format(weight_OI.dtype), compute_dtype(module))

    def _quantized(self, name: str, module: nn.Module, fmt: Format) -> QuantWeight:
        """Return the codes that a run stores."""
        if self._encode is None:
            return stored_in(module, fmt)
        weight_OI = weight_of(module)
        shape = (weight_OI.shape[0], weight_OI.shape[1])
        return QuantWeight.of(self._encode(name, weight_OI, fmt), fmt, shape, compute_dtype(module))
