"""A training whose batches somebody else hands out, step by step: the lines of the road up to training, and the run's training loop.

Memory limits, validation and checkpoints are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bitrank.configs import find_config
from bitrank.material import load_material
from bitrank.models import fuse_model, open_model
from bitrank.plans import make_plans, store_base
from bitrank.profiles import find_profile
from bitrank.schedule import settings_for
from bitrank.specs import RunSpec, make_spec, parse_setting
from bitrank.starts import starting_point
from bitrank_quant import decoder
from bitrank_trainer import DTYPES, OBJECTIVES, PLAIN_OBJECTIVES, Task, choose_device, choose_dtype, pin_threads, train

Pace = Callable[[Iterator[Any], int], Iterator[Any]]
"""Batches, and how many of them are a step, → batches."""


def train_paced(spec: RunSpec, folder: Path, pace: Pace, decode: Callable[[Any], Any] = decoder) -> None:
    """Train as ``spec`` says on what ``pace`` makes of its batches, until that raises. ``decode`` stands for the decoder of base layers."""
    device = choose_device(spec.device)
    dtype = DTYPES[choose_dtype(device) if spec.dtype == "auto" else spec.dtype]
    pin_threads(spec.threads)
    material = load_material(spec)
    loaded = open_model(spec, len(material.task.classes), device, dtype)
    config = find_config(spec.config, spec.plan, spec.tuned)
    plans = make_plans(config, loaded)
    start = starting_point(spec, plans.ranks)
    store_base(spec, loaded, plans.bits, start, device, dtype)
    settings = settings_for(spec, len(material.task.splits["train"]), device, dtype)
    model, hook = config.rank.attach(
        loaded.model, plans.ranks, total_steps=settings.steps, scale=spec.adapter_scale, heads=loaded.fresh, seed=spec.seed
    )
    model.to(device)
    start.write(model)
    if spec.fused:
        fuse_model(model, decode)
    objective = (OBJECTIVES if spec.fused else PLAIN_OBJECTIVES)[spec.kind]
    task = Task(objective, lambda skip: pace(material.train_batches(skip), settings.accumulation), dict, device)
    train(model, task, hook, settings, folder, lambda _: None)


def paced_spec(arguments: argparse.Namespace) -> RunSpec:
    """The spec of ``--task``, ``--steps``, ``--threads``, ``--set``, and ``config`` or ``plan``, with nothing between its steps."""
    never = arguments.steps + 1  # the loop asks for one batch more than it does steps
    given = {"steps": never, "eval_every": never, "checkpoint_every": never, "log_every": never, "threads": arguments.threads}
    given |= {"plan": getattr(arguments, "plan", None)} | dict(parse_setting(text) for text in arguments.set)
    return make_spec(find_profile("laptop"), getattr(arguments, "config", ""), arguments.task, given)
