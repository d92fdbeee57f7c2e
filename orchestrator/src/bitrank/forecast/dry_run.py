"""Run one training step and one evaluation of a plan on the ``meta`` device.

The dry run counts the bytes that are alive at the same time and the matrix products that are computed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from bitrank_adapters import is_norm
from bitrank_data import full_batch
from bitrank_quant import Decode, decoder
from bitrank_trainer import Objective, trainable
from torch import nn

from bitrank.errors import UserError
from bitrank.forecast.live_bytes import LiveBytes
from bitrank.forecast.workload import Shape
from bitrank.models.fuse import attention_for, fuse_model
from bitrank.models.locate import locate
from bitrank.models.meta_model import StandIn, find_new_modules, meta_model, stand_in
from bitrank.process.compute import Compute, objective_of
from bitrank.run.build import attach_adapters
from bitrank.spec.configs import find_config
from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class Pass:
    """Counts of one pass.

    ``peak`` is the maximum of bytes alive at the same time, besides the model and its gradients. ``products``
    is the number of matrix products with distinct shapes.
    """

    peak: int
    products: int


@dataclass(frozen=True)
class Stage:
    """A quantized model with adapters on the ``meta`` device, and its training objective."""

    model: Any
    objective: Objective
    kind: str

    def step(self, shape: Shape) -> Pass:
        """Run a forward and a backward pass over a batch of ``shape``.

        Gradients are allocated before counting, because a real step reuses their buffers.
        """
        self.model.train()
        for parameter in trainable(self.model).values():
            parameter.grad = torch.empty_like(parameter)
        with _by_shapes_alone(self.model), LiveBytes() as live:
            self.objective.loss(self.model, full_batch(*shape, self.kind), "meta").backward()
        return Pass(live.peak, len(live.products))

    def evaluate(self, shape: Shape) -> Pass:
        """Run a forward pass over a batch of ``shape`` without gradients."""
        self.model.eval()
        with torch.no_grad(), _by_shapes_alone(self.model), LiveBytes() as live:
            self.objective.loss(self.model, full_batch(*shape, self.kind), "meta")
        return Pass(live.peak, len(live.products))

    def generate(self, shape: Shape, new_tokens: int) -> Pass:
        """Run the pass of generation that reads prompts of ``shape``.

        ``peak`` includes the keys and values of ``new_tokens`` more tokens, cached like those of the prompt.
        """
        self.model.eval()
        ids_BT = torch.ones(shape, dtype=torch.long, device="meta")
        inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        if self.model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids_BT[:, :1]
        # transformers tests the same signature to decide whether to compute the last position's logits alone.
        if "logits_to_keep" in inspect.signature(self.model.get_base_model().forward).parameters:
            inputs["logits_to_keep"] = 1
        with torch.no_grad(), _by_shapes_alone(self.model), LiveBytes() as live:
            outputs = self.model(**inputs, use_cache=True)
            cached = live.now
        del outputs
        return Pass(live.peak + math.ceil(cached * new_tokens / shape[1]), len(live.products))


@contextmanager
def _by_shapes_alone(model: Any) -> Iterator[None]:
    """Raise :class:`UserError` inside for a pass whose shapes depend on values, which a model without data
    lacks.
    """
    try:
        yield
    except NotImplementedError as error:
        family = getattr(getattr(model, "config", None), "model_type", "this")
        reason = str(error).splitlines()[0][:120]
        raise UserError(
            f"the memory of a {family} model with this head cannot be forecast, so it cannot be planned: its "
            f"forward pass selects by the values of tokens ({reason}); give another model, or run a config"
        ) from error


@dataclass(frozen=True)
class Unplanned:
    """An unquantized model on the ``meta`` device, and the names of its modules that are trained whole."""

    model: Any
    trained_modules: list[str]


def unplanned_model(spec: RunSpec, classes: int, compute: Compute) -> Unplanned:
    """Return the unquantized model of ``spec``; newly initialized modules are trained whole."""
    attention = attention_for(compute.device, spec.fused)
    place = locate(spec.model_source)
    model = meta_model(place, spec.kind, classes, compute.dtype, attention, spec.dropout)
    return Unplanned(model, find_new_modules(model, place, spec.kind))


def dry_run(
    spec: RunSpec,
    compute: Compute,
    unplanned: Unplanned,
    precision: Mapping[str, str],
    ranks: Mapping[str, int],
    steps: int,
) -> Stage:
    """Quantize, adapt and fuse the model of ``unplanned`` in place, in the order of a real run.

    :func:`~bitrank.run.build.build_model` cannot be used: it reads and quantizes weights, and a dry run has
    none. Quantized layers are replaced by stand-ins with the stored shapes; attaching the adapters and fusing
    are the steps of a real run.
    """
    bare_model, trained_modules = unplanned.model, unplanned.trained_modules
    stand_in(bare_model, dict(precision), compute.dtype, trained_modules)
    bare_model.to("meta")
    config = find_config(spec.config, spec.plan, spec.tuned)
    model, _ = attach_adapters(spec, config, bare_model, dict(ranks), trained_modules, steps)
    if spec.fused:
        _fuse(model, compute.device)
    model.to("meta")
    return Stage(model, objective_of(spec), spec.kind)


def _fuse(model: Any, device: str) -> None:
    """Fuse ``model`` as for ``device``.

    Norms are fused on a CPU only, and the fusing code reads the device from their weights. The norms' weights
    are therefore on the CPU while the model is fused.
    """
    if device == "cpu":
        for module in model.modules():
            if is_norm(module):
                module.to_empty(device="cpu")
    fuse_model(model, _decoder)


def _decoder(layer: nn.Module) -> Decode | None:
    return (lambda: layer.weight) if isinstance(layer, StandIn) else decoder(layer)
