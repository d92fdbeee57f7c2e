"""The learning rate of each arm of a study: the one of a grid with the least validation loss.

The runs of the grid have a seed of their own and belong to an experiment of their own (``NAME-rates``), so no
reported run was chosen by its own result. They are runs like all others: a repeated command continues them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.mlflow_tracker import RATES
from bitrank.tracking.run_state import StoredRun

SEED = 1000  # seed of the runs of the grid; no reported run has it
LOSS = "val/loss"  # metric by which a rate is chosen: at the last validation, which is after the last step
TIE = 0.005  # relative difference of validation losses below which two rates are tied
Cell = tuple[str, str]  # config and task of a run


@dataclass(frozen=True)
class ChosenRate:
    """The learning rate of ``config`` on ``task``, and the validation loss in nats by rate; None: diverged.

    ``at_edge``: the best rate is the first or the last of the grid, so a better one may be outside.
    ``seconds`` is the time of all runs of the grid; a run that diverged records none.
    """

    config: str
    task: str
    rate: float
    losses: dict[str, float | None]
    at_edge: bool
    seconds_per_step: float
    seconds: float


def cell_of(spec: RunSpec) -> Cell:
    """Return the key of the runs of ``spec`` that differ in seed and learning rate only."""
    return spec.config, spec.task_name


def grid_specs(specs: Sequence[RunSpec], factors: Sequence[float]) -> list[RunSpec]:
    """Return the runs of the grid: each arm and task of ``specs`` at its learning rate × each factor.

    They are as long as the runs of the arm: shorter ones favour rates that are too high for these. They are
    not tested, since the choice is made on validation.
    """
    first: dict[Cell, RunSpec] = {}
    for spec in specs:
        first.setdefault(cell_of(spec), spec)
    return [
        replace(
            spec,
            profile=spec.profile + RATES,
            seed=SEED,
            tested=False,
            learning_rate=_scaled(spec, factor),
        )
        for spec in first.values()
        for factor in factors
    ]


def missing(grid: Sequence[RunSpec], runs: Mapping[str, StoredRun], walks: bool) -> list[RunSpec]:
    """Return the runs of ``grid`` that have to end before :func:`choose_rates`; none if all have ended.

    With ``walks`` these are, in each cell, the middle rate and the next higher one first, then the neighbours
    of the best rate so far and of those tied with it. Such a walk ends at a rate that is better than its
    neighbours, which is the best of the grid if the loss falls and then rises with the rate.
    """
    if not walks:
        return [spec for spec in grid if _loss(runs.get(spec.spec_id)) is None]
    found: list[RunSpec] = []
    for specs in _cells(grid).values():
        ordered = sorted(specs, key=lambda spec: spec.learning_rate)
        losses = [_loss(runs.get(spec.spec_id)) for spec in ordered]
        middle = len(ordered) // 2
        reach = _beside_the_best(losses) or {middle, middle + 1}
        found += [ordered[i] for i in sorted(reach) if 0 <= i < len(ordered) and losses[i] is None]
    return found


def _beside_the_best(losses: Sequence[float | None]) -> set[int]:
    """Places of the least known loss, of those tied with it, and of their neighbours; none if none is known.

    Two rates at which nothing is learned are tied: which one is lower does not say where downhill is.
    """
    limit = min((loss for loss in losses if loss is not None), default=math.nan) * (1 + TIE)
    low = [place for place, loss in enumerate(losses) if loss is not None and loss <= limit]
    return {place + step for place in low for step in (-1, 0, 1)}


def at_factor(specs: Sequence[RunSpec], factor: float) -> list[RunSpec]:
    """Return ``specs`` at their learning rate × ``factor``: a grid of one rate leaves nothing to choose."""
    return [replace(spec, learning_rate=_scaled(spec, factor)) for spec in specs]


def choose_rates(
    grid: Sequence[RunSpec], runs: Mapping[str, StoredRun], walks: bool = False
) -> dict[Cell, ChosenRate]:
    """Return the choice for every cell of which :func:`missing` needs no run; ``runs`` maps spec ids to runs.

    A diverged run counts as infinitely bad. A cell without a finite loss is left out.
    """
    chosen: dict[Cell, ChosenRate] = {}
    for cell, specs in _cells(grid).items():
        ended = [(loss, spec) for spec in specs if (loss := _loss(runs.get(spec.spec_id))) is not None]
        least, best = min(ended, key=lambda pair: pair[0], default=(math.inf, specs[0]))
        if missing(specs, runs, walks) or not math.isfinite(least):
            continue
        shown = {f"{spec.learning_rate:g}": loss if math.isfinite(loss) else None for loss, spec in ended}
        rates = [spec.learning_rate for spec in specs]
        is_at_edge = len(rates) > 1 and best.learning_rate in {min(rates), max(rates)}
        pace = _seconds_per_step(best, runs.get(best.spec_id))
        seconds = _seconds([runs.get(spec.spec_id) for _, spec in ended])
        chosen[cell] = ChosenRate(*cell, best.learning_rate, shown, is_at_edge, pace, seconds)
    return chosen


def with_rates(specs: Sequence[RunSpec], chosen: Mapping[Cell, ChosenRate]) -> list[RunSpec]:
    """Return ``specs`` with their chosen rates, without the cells that have none."""
    return [
        replace(spec, learning_rate=chosen[cell_of(spec)].rate) for spec in specs if cell_of(spec) in chosen
    ]


def rate_rows(chosen: Mapping[Cell, ChosenRate]) -> list[dict[str, Any]]:
    """Return the choices as plain data, one row per arm and task."""
    return [asdict(choice) for choice in chosen.values()]


def _cells(grid: Sequence[RunSpec]) -> dict[Cell, list[RunSpec]]:
    cells: dict[Cell, list[RunSpec]] = {}
    for spec in grid:
        cells.setdefault(cell_of(spec), []).append(spec)
    return cells


def _scaled(spec: RunSpec, factor: float) -> float:
    """Return the learning rate of ``spec`` × ``factor`` to three digits."""
    return float(f"{spec.learning_rate * factor:.3g}")


def _loss(run: StoredRun | None) -> float | None:
    """Return the validation loss of ``run``, infinite if it diverged; None if it has not ended."""
    if run is None:
        return None
    if "finding" in run.tags and run.status != "FINISHED":
        return math.inf
    if run.status != "FINISHED":
        return None
    loss = run.figures.get(LOSS, math.nan)
    return loss if math.isfinite(loss) else math.inf


def _seconds(runs: Sequence[StoredRun | None]) -> float:
    """Return the seconds of those of ``runs`` that recorded their time."""
    return sum(run.figures.get("time/total_s", 0.0) for run in runs if run is not None)


def _seconds_per_step(spec: RunSpec, run: StoredRun | None) -> float:
    """Return the seconds of one optimizer step of ``run``; NaN if unknown."""
    seconds = run.figures.get("time/train_s") if run is not None else None
    return seconds / spec.steps if seconds is not None and spec.steps else math.nan
