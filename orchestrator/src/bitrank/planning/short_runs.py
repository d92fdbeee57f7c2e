"""Planners that search with real evaluations: each candidate plan is built, trained briefly and validated.

QR-Adaptor and similar methods choose in this way. Their search cost is counted in full: the seconds of every
evaluation, including those of an earlier, interrupted search, which a journal file beside the plan records.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bitrank_adapters import ResidualStart
from bitrank_data import TokenSplit
from bitrank_planner import SEARCHES, Found, Plan, Problem
from bitrank_trainer import (
    Diverged,
    Task,
    train,
)

from bitrank.planning.race import run_race
from bitrank.process.compute import Compute, objective_of
from bitrank.run.build import Built, Overrides, build_model
from bitrank.run.data import RunData, load_data
from bitrank.run.train_settings import settings_for
from bitrank.sensitivity.tables import Tables
from bitrank.spec.configs import Config
from bitrank.spec.rules import GivenBits, GivenRanks
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind


class ShortRun:
    """Map a plan to its validation loss in nats after ``steps`` optimizer steps; infinite if it diverged.

    ``spec`` gives the training settings. Adapters start from the Fisher-weighted residual, as in the planned
    arms. The learning-rate schedule is that of a run of ``steps`` steps.
    """

    def __init__(self, spec: RunSpec, tables: Tables, steps: int, repairs: bool) -> None:
        self._repairs = repairs
        self._spec = replace(spec, steps=steps, epochs=None)
        self._data = load_data(self._spec)
        validation = self._data.validation
        self._validation = validation.select(
            np.arange(min(len(validation), task_kind(spec.kind).validation_sequences))
        )
        self._weights = {name: (moments.row_O, moments.column_I) for name, moments in tables.moments.items()}

    def __call__(self, plan: Plan) -> float:
        with tempfile.TemporaryDirectory() as folder:
            try:
                return self._trained(plan, Path(folder))
            except Diverged:
                return float("inf")

    def _trained(self, plan: Plan, folder: Path) -> float:
        repaired = plan.ranks if self._repairs else {}
        init = ResidualStart(repaired, rounds=self._spec.init_rounds, weights=self._weights)
        config = Config(GivenBits(plan.precision), GivenRanks(plan.ranks), "joint")
        built = build_arm(self._spec, self._data, config, init)
        return train_briefly(self._spec, self._data, self._validation, built, folder)


def build_arm(spec: RunSpec, data: RunData, config: Config, init: ResidualStart) -> Built:
    """Return the model of ``spec`` with the formats and ranks of ``config``; adapters start from ``init``."""
    assert spec.steps is not None, "a short run has a number of steps"
    overrides = Overrides(init)
    return build_model(spec, Compute.of(spec), config, data.task.classes, spec.steps, overrides=overrides)


def train_briefly(spec: RunSpec, data: RunData, validation: TokenSplit, built: Built, folder: Path) -> float:
    """Train ``built`` for the steps of ``spec``; return its loss in nats on ``validation`` afterwards.

    ``folder`` is for checkpoints. Raises :class:`~bitrank_trainer.Diverged`.
    """
    compute, objective = Compute.of(spec), objective_of(spec)
    settings = settings_for(spec, len(data.task.splits["train"]), compute.device, compute.dtype)
    settings = replace(settings, eval_every=settings.steps, checkpoint_every=settings.steps)

    def validate() -> dict[str, float]:
        with built.hook.as_stored():
            return data.evaluate(built.model, validation, objective, compute.device).metrics

    task = Task(objective, data.train_batches, validate, compute.device)
    return train(built.model, task, built.hook, settings, folder, lambda _: None).history["loss"]


@dataclass(frozen=True)
class SearchLimits:
    """The name of a search, the plans that it may evaluate, and the optimizer steps of one evaluation.

    ``repairs`` is True if adapters start from the quantization error, and False if they start at zero.
    """

    name: str
    evaluations: int
    steps: int
    repairs: bool


def search(
    limits: SearchLimits,
    problem: Problem,
    spec: RunSpec,
    tables: Tables,
    journal: Path,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Found:
    """Run the search of ``limits`` with real short evaluations; resume from ``journal`` if it exists.

    Raises :class:`~bitrank_planner.PlanError` as the searches do.
    """
    name, evaluations, steps = limits.name, limits.evaluations, limits.steps
    short = ShortRun(spec, tables, steps, limits.repairs)
    seen = 0

    def evaluate_plan(plan: Plan) -> float:
        nonlocal seen
        value = short(plan)
        seen += 1
        on_progress(f"{name}: plan {seen} of {evaluations}: {value:.4f} nats after {steps} steps")
        return value

    journal.parent.mkdir(parents=True, exist_ok=True)
    return SEARCHES[name](problem, evaluate_plan, evaluations, spec.seed, journal)


def race(
    limits: SearchLimits,
    plans: Sequence[Plan],
    problem: Problem,
    spec: RunSpec,
    tables: Tables,
    journal: Path,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Found:
    """Run the race of ``limits`` among ``plans``; resume from the journals beside ``journal``.

    The first round trains for the steps of ``limits``; the number of evaluations follows from the plans.
    Raises :class:`~bitrank_planner.PlanError` as :func:`~bitrank.planning.race.run_race` does.
    """

    def trained_for(steps: int) -> Callable[[Plan], float]:
        short = ShortRun(spec, tables, steps, limits.repairs)

        def evaluate_plan(plan: Plan) -> float:
            value = short(plan)
            on_progress(f"{limits.name}: {value:.4f} nats after {steps} steps")
            return value

        return evaluate_plan

    journal.parent.mkdir(parents=True, exist_ok=True)
    return run_race(plans, problem, trained_for, limits.steps, journal)
