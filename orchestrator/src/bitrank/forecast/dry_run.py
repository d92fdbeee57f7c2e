"""One training step and one evaluation of a plan, rehearsed on the ``meta`` device: what they keep alive, what products they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bitrank_adapters import is_norm
from bitrank_quant import Decode, decoder
from bitrank_trainer import Objective, trainable
from torch import nn

from bitrank.forecast.live_bytes import LiveBytes, full_batch
from bitrank.forecast.workload import Shape
from bitrank.models.fuse import attention_for, fuse_model
from bitrank.models.locate import locate
from bitrank.models.meta_model import StandIn, find_new_modules, meta_model, stand_in
from bitrank.process.compute import objective_of
from bitrank.spec.configs import find_config
from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class Pass:
    """``peak`` bytes alive at once beside the model and its gradients, and the number of differently shaped matrix ``products``."""

    peak: int
    products: int


@dataclass(frozen=True)
class Stage:
    """A model as the plan makes it, on the ``meta`` device, with adapters; and what training minimises."""

    model: Any
    objective: Objective
    kind: str

    def step(self, shape: Shape) -> Pass:
        """Forward and backward pass over a batch of ``shape``; gradients have their place already."""
        self.model.train()
        for parameter in trainable(self.model).values():
            parameter.grad = torch.empty_like(parameter)
        with LiveBytes() as live:
            self.objective.loss(self.model, full_batch(*shape, self.kind), "meta").backward()
        return Pass(live.peak, len(live.products))

    def evaluate(self, shape: Shape) -> Pass:
        """A batch of ``shape`` without gradients."""
        self.model.eval()
        with torch.no_grad(), LiveBytes() as live:
            self.objective.loss(self.model, full_batch(*shape, self.kind), "meta")
        return Pass(live.peak, len(live.products))


def unplanned_model(spec: RunSpec, classes: int, device: str, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """The model of ``spec`` before any plan, and the names of its fresh modules."""
    attention = attention_for(device, spec.fused)
    place = locate(spec.model)
    model = meta_model(place, spec.kind, classes, dtype, attention, spec.dropout)
    return model, find_new_modules(model, place, spec.kind)


def dry_run(
    spec: RunSpec,
    bare_model: Any,
    trained_modules: list[str],
    precision: Mapping[str, str],
    ranks: Mapping[str, int],
    steps: int,
    device: str,
    dtype: torch.dtype,
) -> Stage:
    """``bare_model`` with the plan done to it, in place, as the road does it to a real one."""
    stand_in(bare_model, dict(precision), dtype, trained_modules)
    bare_model.to("meta")
    rule = find_config(spec.config, spec.plan, spec.tuned).rank
    model, _ = rule.attach(
        bare_model,
        dict(ranks),
        total_steps=steps,
        scale=spec.adapter_scale,
        heads=trained_modules,
        seed=spec.seed,
    )
    if spec.fused:
        _fuse(model, device)
    model.to("meta")
    return Stage(model, objective_of(spec), spec.kind)


def _fuse(model: Any, device: str) -> None:
    """Norms are fused on a CPU alone, told by where their weights are: so they are there for a moment."""
    if device == "cpu":
        for module in model.modules():
            if is_norm(module):
                module.to_empty(device="cpu")
    fuse_model(model, _decoder)


def _decoder(layer: nn.Module) -> Decode | None:
    return (lambda: layer.weight) if isinstance(layer, StandIn) else decoder(layer)
