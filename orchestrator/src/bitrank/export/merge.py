"""Fold a trained adapter into its base, with an audit of the cost before anything is written.

The base is rebuilt by the functions of a run, adapter initialization included: an adapter that started from
the quantization error fits only that base. :func:`~bitrank.run.build.build_model` itself would attach new
adapters by a rank rule, whereas a merge attaches the trained one. ``16bit`` replaces every matrix by
W_q + scale · B A in the run's compute dtype, for transformers without bitrank. ``quantized`` replaces it by
q(W_q + scale · B A) in its own format; the audit gives the rounding error. The loss is measured on the
validation split, because it decides whether the merged model is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bitrank_adapters import AdapterScale, SavedAdapter, adapted, attach_lora, read_adapter
from bitrank_quant import (
    Applied,
    QuantLinear,
    left_out,
    parse_format,
    stored_weight,
    tied_modules,
    to_reference,
)
from bitrank_trainer import pin_threads
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank.errors import UserError
from bitrank.export.finished_run import FinishedRun
from bitrank.export.padding import separate_padding
from bitrank.models.load import Loaded, open_model
from bitrank.process.compute import Compute, objective_for
from bitrank.run.build import quantize_base
from bitrank.run.data import RunData, load_data
from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class MatrixAudit:
    """Relative Frobenius distances of W_q (``before``) and the result (``after``) from W_q + scale · B A."""

    format: str
    rank: int
    before: float
    after: float


@dataclass(frozen=True)
class Audit:
    """Validation metrics of the adapted and of the merged model, and errors of all changed matrices."""

    into: str
    before: dict[str, float]
    after: dict[str, float]
    matrices: dict[str, MatrixAudit]

    @property
    def added_loss(self) -> float:
        """Increase of the validation loss by merging, in nats."""
        return self.after["loss"] - self.before["loss"]


@dataclass(frozen=True)
class Merged:
    """A merged model in memory, its tokenizer, its audit, and a note if the padding token changed."""

    model: Any
    tokenizer: Any
    audit: Audit
    padding: str | None = None


def merge(run: FinishedRun, into: str) -> Merged:
    """Fold the adapter of ``run`` into its base; ``into`` is a key of :data:`MERGES`. Nothing is written.

    Raises a package's error, or :class:`~bitrank.errors.UserError`, if the adapter does not fit the run.
    """
    spec, adapter = run.spec, read_adapter(run.adapter)
    compute = Compute.of(spec)
    device, dtype = compute.device, compute.dtype
    pin_threads(spec.threads)
    data = load_data(spec)
    loaded = open_model(spec, data.task.classes, device, dtype)
    applied, _ = quantize_base(spec, compute, loaded, run.bits(loaded), run.ranks)
    model = _with_adapter(loaded, adapter).to(device)
    before = _evaluate(model, spec, data, device)
    base = _Base(spec, model, loaded, applied, adapter, device, dtype, data.task.classes)
    merged, matrices = MERGES[into](base)
    audit = Audit(into, before, _evaluate(merged, spec, data, device), matrices)
    padding = separate_padding(merged, loaded.tokenizer, data.task)
    return Merged(merged, loaded.tokenizer, audit, padding)


@dataclass(frozen=True)
class _Base:
    """The adapted model and its parts."""

    spec: RunSpec
    model: Any
    loaded: Loaded
    applied: dict[str, Applied]
    adapter: SavedAdapter
    device: str
    dtype: torch.dtype
    classes: Sequence[str]

    def wanted(self, name: str, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """(W_q, W_q + scale · B A) of one matrix, in fp32."""
        stored_OI = stored_weight(layer).float()
        part = self.adapter.parts.get(name)
        return stored_OI, stored_OI if part is None else stored_OI + part.product().to(stored_OI)

    def audit(self, name: str, stored_OI: Tensor, wanted_OI: Tensor, merged_OI: Tensor) -> MatrixAudit:
        part, whole = self.adapter.parts.get(name), float(wanted_OI.norm()) or 1.0
        distances = (
            float((wanted_OI - matrix_OI.float()).norm()) / whole for matrix_OI in (stored_OI, merged_OI)
        )
        done = self.applied.get(name)
        return MatrixAudit(
            done.format if done else str(self.dtype), 0 if part is None else len(part.down_RI), *distances
        )


def _with_adapter(loaded: Loaded, adapter: SavedAdapter) -> Any:
    """Attach ``adapter`` to the base as LoRA, with its scale folded into one factor."""
    parts = {name: part for name, part in adapter.parts.items() if len(part.down_RI)}
    heads = _trained_heads(loaded, adapter)
    if missing := [head for head in loaded.new_modules if head not in heads]:
        raise UserError(
            f"neither the model nor the adapter has weights for {missing[0]!r}; give the run that trained it"
        )
    model = attach_lora(
        loaded.model,
        {name: len(part.down_RI) for name, part in parts.items()},
        scale=AdapterScale(1.0, "constant"),
        heads=heads,
    )
    with torch.no_grad():
        for name, layer in adapted(model):
            layer.lora_A["default"].weight.copy_(parts[name].down_RI)
            layer.lora_B["default"].weight.copy_(parts[name].up_OR * parts[name].scale)
        for name, parameter in model.named_parameters():
            if ".modules_to_save.default" in name:
                own_name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
                parameter.copy_(adapter.whole[own_name])
    return model


def _trained_heads(loaded: Loaded, adapter: SavedAdapter) -> list[str]:
    """Heads with weights in ``adapter``; a head that it lacks was not trained."""
    return [head for head in loaded.trained_modules if f"{head}.weight" in adapter.whole]


def _evaluate(model: Any, spec: RunSpec, data: RunData, device: str) -> dict[str, float]:
    return data.evaluate(model, data.validation, objective_for(spec.kind, fused=False), device).metrics


def _into_16bit(base: _Base) -> tuple[Any, dict[str, MatrixAudit]]:
    """A new 16-bit model with every matrix replaced by W_q + scale · B A."""
    unquantized = open_model(base.spec, base.classes, base.device, base.dtype)
    unquantized.fill_rest()
    layers, audits = _layers(base), {}
    with torch.no_grad():
        for name, layer in layers.items():
            stored_OI, wanted_OI = base.wanted(name, layer)
            target: Any = unquantized.model.get_submodule(name)
            target.weight.copy_(wanted_OI.T if isinstance(target, Conv1D) else wanted_OI)
            audits[name] = base.audit(name, stored_OI, wanted_OI, stored_weight(target))
        # The run rounded the remaining matrices and tensors to 16 bits; the model's file may be in fp32.
        for name in base.applied.keys() - layers.keys():
            kept: Any = unquantized.model.get_submodule(name)
            kept_OI = stored_weight(_inner(base).get_submodule(name))
            kept.weight.copy_(kept_OI.T if isinstance(kept, Conv1D) else kept_OI)
        for one in left_out(unquantized.model, unquantized.trained_modules):
            tensor = unquantized.model.get_parameter(one.name)
            tensor.copy_(tensor if tensor.element_size() <= 2 else tensor.to(torch.bfloat16))
        _put_heads(unquantized.model, base)
    return unquantized.model, audits


def _into_quantized(base: _Base) -> tuple[Any, dict[str, MatrixAudit]]:
    """Encode every adapted matrix again in its own format, with the reference backend.

    Quantized matrices of other libraries are converted to the reference backend too. Raises
    :class:`UserError` when the base is in 16 bits.
    """
    if all(parse_format(done.format).bits >= 16 for done in base.applied.values()):
        raise UserError("no matrix of this run is quantized; merge --into 16bit")
    layers = _layers(base)
    model, audits = base.model.unload(), {}
    with torch.no_grad():
        for name, layer in layers.items():
            unchanged = isinstance(layer, QuantLinear) and name not in base.adapter.parts
            if unchanged or isinstance(layer, nn.Embedding):
                continue
            stored_OI, wanted_OI = base.wanted(name, layer)
            encoded = to_reference(layer, wanted_OI, base.applied[name].format, base.dtype)
            model.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = encoded
            audits[name] = base.audit(name, stored_OI, wanted_OI, stored_weight(encoded))
        _put_heads(model, base)
    return model, audits


MERGES = {"16bit": _into_16bit, "quantized": _into_quantized}


def _layers(base: _Base) -> dict[str, nn.Module]:
    """Base layers that a merge changes, by name: those with an adapter, and quantized ones."""
    with_adapter = dict(adapted(base.model))
    quantized = [name for name, done in base.applied.items() if parse_format(done.format).bits < 16]
    inner = _inner(base)
    tied = tied_modules(inner)
    names = dict.fromkeys([*with_adapter, *(name for name in quantized if name not in tied)])
    return {
        name: with_adapter[name].base_layer if name in with_adapter else inner.get_submodule(name)
        for name in names
    }


def _inner(base: _Base) -> Any:
    """The adapted model without PEFT's wrapper."""
    return base.model.base_model.model


def _put_heads(model: Any, base: _Base) -> None:
    """Copy the modules that were trained whole to ``model``, in the compute dtype."""
    for head in _trained_heads(base.loaded, base.adapter):
        trained = model.get_submodule(head)
        plain = trained if not hasattr(trained, "modules_to_save") else trained.original_module
        plain.to(base.dtype)._forward_pre_hooks.clear()
        for name, parameter in plain.named_parameters():
            parameter.data.copy_(base.adapter.whole[f"{head}.{name}"])
            parameter.requires_grad_(False)
        model.set_submodule(head, plain)
