"""Planners that search on real evaluations: each plan they look at is built, trained for a few steps, and judged on validation data.

This is how QR-Adaptor and its like choose, so their cost is counted in full: the seconds of every evaluation, those of an earlier,
interrupted search included (a journal beside the plan keeps them).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from bitrank_adapters import ResidualStart
from bitrank_planner import SEARCHES, Found, Plan, Problem
from bitrank_trainer import (
    DTYPES,
    OBJECTIVES,
    PLAIN_OBJECTIVES,
    Diverged,
    Task,
    choose_device,
    choose_dtype,
    evaluate,
    train,
)

from bitrank.material import load_material
from bitrank.measuring import Tables
from bitrank.models import fuse_model, open_model
from bitrank.plans import store_base
from bitrank.rules import GivenRanks
from bitrank.schedule import settings_for
from bitrank.specs import RunSpec

_JUDGED = {"classification": 256, "language-modelling": 12}  # validation sequences that a short run is judged on


class ShortRun:
    """A plan → nats of validation loss after ``steps`` optimizer steps, as ``spec`` would train it; infinite where training diverged.

    Adapters start from the Fisher-weighted residual, as the planned arms do. The learning-rate schedule is that of a run of ``steps``.
    """

    def __init__(self, spec: RunSpec, tables: Tables, steps: int) -> None:
        self._spec = replace(spec, steps=steps, epochs=None)
        self._material = load_material(self._spec)
        validation = self._material.validation
        self._judged = validation.select(np.arange(min(len(validation), _JUDGED[spec.kind])))
        self._weights = {name: (moments.row_O, moments.column_I) for name, moments in tables.moments.items()}
        self._device = choose_device(spec.device)
        self._dtype = DTYPES[choose_dtype(self._device) if spec.dtype == "auto" else spec.dtype]

    def __call__(self, plan: Plan) -> float:
        with tempfile.TemporaryDirectory() as folder:
            try:
                return self._trained(plan, Path(folder))
            except Diverged:
                return float("inf")

    def _trained(self, plan: Plan, folder: Path) -> float:
        spec, device = self._spec, self._device
        loaded = open_model(spec, self._material.task.classes, device, self._dtype)
        start = ResidualStart(plan.ranks, rounds=spec.init_rounds, weights=self._weights)
        store_base(spec, loaded, plan.precision, start, device, self._dtype)
        settings = settings_for(spec, len(self._material.task.splits["train"]), device, self._dtype)
        model, hook = GivenRanks(plan.ranks).attach(
            loaded.model, plan.ranks, total_steps=settings.steps, scale=spec.adapter_scale, heads=loaded.fresh, seed=spec.seed
        )
        model.to(device)
        start.write(model)
        if spec.fused:
            fuse_model(model)
        objective = (OBJECTIVES if spec.fused else PLAIN_OBJECTIVES)[spec.kind]
        settings = replace(settings, eval_every=settings.steps, checkpoint_every=settings.steps)
        task = Task(
            objective,
            self._material.train_batches,
            lambda: evaluate(model, self._material.batches_of(self._judged), objective, device).metrics,
            device,
        )
        return train(model, task, hook, settings, folder, lambda _: None).history["loss"]


def search(
    name: str, problem: Problem, spec: RunSpec, tables: Tables, *, evaluations: int, steps: int, journal: Path,
    told: Callable[[str], None] = lambda _: None,
) -> Found:  # fmt: skip
    """The search called ``name`` on real short evaluations, continued from ``journal`` where there is one.

    Raises :class:`~bitrank_planner.PlanError` as the searches do.
    """
    short = ShortRun(spec, tables, steps)
    seen = 0

    def judged(plan: Plan) -> float:
        nonlocal seen
        value = short(plan)
        seen += 1
        told(f"{name}: plan {seen} of {evaluations}: {value:.4f} nats after {steps} steps")
        return value

    journal.parent.mkdir(parents=True, exist_ok=True)
    return SEARCHES[name](problem, judged, evaluations, spec.seed, journal)
