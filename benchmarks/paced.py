"""A training whose batches the caller controls: a run's steps up to training, and its training loop.

Memory limits, validation and checkpoints are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bitrank.process.compute import Compute, objective_of
from bitrank.run.build import Overrides, build_model
from bitrank.run.data import load_data
from bitrank.run.train_settings import settings_for
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.parse import parse_setting
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_quant import decoder
from bitrank_trainer import Task, pin_threads, train

Pace = Callable[[Iterator[Any], int], Iterator[Any]]
"""(batches, batches per step) → batches."""


def train_paced(spec: RunSpec, folder: Path, pace: Pace, decode: Callable[[Any], Any] = decoder) -> None:
    """Train the model of ``spec`` on its batches, passed through ``pace``, until that raises.

    ``decode`` replaces the decoder of base layers.
    """
    compute = Compute.of(spec)
    device, dtype = compute.device, compute.dtype
    pin_threads(spec.threads)
    data = load_data(spec)
    settings = settings_for(spec, len(data.task.splits["train"]), device, dtype)
    config = find_config(spec.config, spec.plan, spec.tuned)
    overrides = Overrides(decode=decode)
    built = build_model(spec, compute, config, len(data.task.classes), settings.steps, overrides=overrides)
    model, hook = built.model, built.hook
    objective = objective_of(spec)
    task = Task(objective, lambda skip: pace(data.train_batches(skip), settings.accumulation), dict, device)
    train(model, task, hook, settings, folder, lambda _: None)


def paced_spec(arguments: argparse.Namespace) -> RunSpec:
    """The spec of ``--task``, ``--steps``, ``--threads``, ``--set``, and ``config`` or ``plan``.

    Nothing but training steps happens in it: no validation, checkpoint or log line.
    """
    never = arguments.steps + 1  # the loop draws one batch more than its steps
    given = {
        "steps": never,
        "eval_every": never,
        "checkpoint_every": never,
        "log_every": never,
        "threads": arguments.threads,
    }
    given |= {name: getattr(arguments, name, None) for name in ("plan", "model")}
    given |= dict(parse_setting(text) for text in arguments.set)
    return make_spec(find_profile("laptop"), getattr(arguments, "config", ""), arguments.task, given)
