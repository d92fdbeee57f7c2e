"""A finished run rebuilt in memory: its base in the formats of its plan, with the trained adapter attached.

The base is rebuilt by the functions of a run, adapter initialization included: an adapter that started from
the quantization error fits only that base. :func:`~bitrank.run.build.build_model` itself would attach new
adapters by a rank rule, whereas an export attaches the trained one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from bitrank_adapters import (
    AdapterScale,
    AdapterStart,
    Part,
    PartStart,
    ResidualStart,
    SavedAdapter,
    adapted,
    adapter_memory,
    attach_frozen,
    attach_lora,
    read_adapter,
    read_scales,
)
from bitrank_quant import (
    Applied,
    Float,
    QuantLinear,
    QuantWeight,
    float_format,
    left_out,
    load_layers,
    parse_format,
    set_scales,
    stored_bytes,
    stored_weight,
    tied_modules,
)
from bitrank_trainer import pin_threads
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank.errors import UserError
from bitrank.export.finished_run import FinishedRun
from bitrank.export.recorded import differences
from bitrank.models.load import Loaded, open_model
from bitrank.planning.kept_ranks import ADAPTER_BYTES
from bitrank.process.compute import Compute, objective_for
from bitrank.run.adapter_init import choose_init
from bitrank.run.build import quantize_base
from bitrank.run.data import RunData, load_data
from bitrank.spec.inits import INITS
from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class Rebuilt:
    """The adapted model of a run and its parts.

    ``model`` is the PEFT model; ``applied`` has format and backend of every planned matrix. The adapter's
    scale is folded into its up factors in ``model``, and kept apart in ``adapter``. ``metrics`` are those of
    the adapted model on the validation split. ``planned_bytes`` are the bytes of the base in the formats of
    its plan, unquantized tensors included, without the adapter. ``taken`` are the parts that the base lacks,
    where adapters started as these. ``notes`` are sentences on what differs from the run.
    """

    run: FinishedRun
    compute: Compute
    data: RunData
    loaded: Loaded
    model: Any
    applied: dict[str, Applied]
    adapter: SavedAdapter
    metrics: dict[str, float]
    planned_bytes: int
    taken: Mapping[str, Part] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def spec(self) -> RunSpec:
        """The spec of the run."""
        return self.run.spec

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the base."""
        return self.loaded.tokenizer

    @property
    def inner(self) -> Any:
        """The adapted model without PEFT's wrapper."""
        return self.model.base_model.model

    def evaluate(self, model: Any) -> dict[str, float]:
        """Metrics of ``model`` on the validation split, which decides whether an export is written."""
        return _evaluate(model, self.spec, self.data, self.compute)

    def layers(self) -> dict[str, nn.Module]:
        """Base layers that an export may change, by name: those with an adapter, and quantized ones."""
        with_adapter = dict(adapted(self.model))
        quantized = [name for name, done in self.applied.items() if parse_format(done.format).bits < 16]
        tied = tied_modules(self.inner)
        names = dict.fromkeys([*with_adapter, *(name for name in quantized if name not in tied)])
        return {name: self.layer(name) for name in names}

    def layer(self, name: str) -> nn.Module:
        """The base layer called ``name``, without its adapter."""
        layer: Any = self.inner.get_submodule(name)
        base: nn.Module = getattr(layer, "base_layer", layer)
        return base

    def stored_and_adapted(self, name: str) -> tuple[Tensor, Tensor]:
        """(W_q, W_q + scale · B A) of the matrix ``name``, (out, in) in fp32."""
        stored_OI = stored_weight(self.layer(name)).float()
        part = self.adapter.parts.get(name)
        return stored_OI, stored_OI if part is None else stored_OI + part.product().to(stored_OI)

    def rank(self, name: str) -> int:
        """Rank of the adapter of the matrix ``name``; 0 without one."""
        part = self.adapter.parts.get(name)
        return 0 if part is None else len(part.down_RI)

    def format(self, name: str) -> str:
        """Format of the matrix ``name``: the planned one, or the compute dtype of an unplanned matrix."""
        done = self.applied.get(name)
        return done.format if done else str(float_format(self.compute.dtype))

    def planned_adapter_bytes(self) -> int:
        """Bytes of the adapter, and of modules trained whole, as plans count them."""
        factors = [tensor for part in self.adapter.parts.values() for tensor in (part.up_OR, part.down_RI)]
        return ADAPTER_BYTES * sum(tensor.numel() for tensor in (*factors, *self.adapter.whole.values()))

    def trained_heads(self) -> list[str]:
        """Heads with weights in the adapter; a head that it lacks was not trained."""
        return _trained_heads(self.loaded, self.adapter)

    def copy_heads(self, model: Any) -> None:
        """Copy the modules that were trained whole to ``model``, in the compute dtype."""
        for head in self.trained_heads():
            trained = model.get_submodule(head)
            plain = trained if not hasattr(trained, "modules_to_save") else trained.original_module
            plain.to(self.compute.dtype)._forward_pre_hooks.clear()
            for name, parameter in plain.named_parameters():
                parameter.data.copy_(self.adapter.whole[f"{head}.{name}"])
                parameter.requires_grad_(False)
            model.set_submodule(head, plain)

    def copy_whole(self, model: Any) -> None:
        """Copy what was trained whole to the plain ``model``: heads, and others such as norms."""
        self.copy_heads(model)
        _copy_parameters(model, _outside_heads(self.adapter, self.trained_heads()))

    def plain_model(self, weights_OI: Mapping[str, Tensor]) -> Any:
        """A new unquantized model with these (out, in) matrices, and the remaining tensors of the run.

        It computes in the run's dtype, and is on the run's device.
        """
        loaded = open_model(self.spec, self.data.task.classes, self.compute.device, self.compute.dtype)
        loaded.fill_rest()
        with torch.no_grad():
            for name, weight_OI in weights_OI.items():
                _copy_weight(loaded.model.get_submodule(name), weight_OI)
            # The run rounded the remaining matrices and tensors to 16 bits; the model's file may be in fp32.
            for name in self.applied.keys() - weights_OI.keys():
                _copy_weight(loaded.model.get_submodule(name), stored_weight(self.inner.get_submodule(name)))
            for one in left_out(loaded.model, loaded.trained_modules):
                tensor = loaded.model.get_parameter(one.name)
                tensor.copy_(tensor if tensor.element_size() <= 2 else tensor.to(torch.bfloat16))
            self.copy_whole(loaded.model)
        return loaded.model


def rebuild(run: FinishedRun) -> Rebuilt:
    """Rebuild the base of ``run`` and attach its adapter.

    Raises a package's error, or :class:`~bitrank.errors.UserError`, if the adapter does not fit the run.
    """
    spec = run.spec
    adapter = read_adapter(run.adapter, has_its_base=INITS[spec.init].splits)
    compute = Compute.of(spec)
    pin_threads(spec.threads)
    data = load_data(spec)
    loaded = open_model(spec, data.task.classes, compute.device, compute.dtype)
    start = _start_of_base(spec, run.ranks)
    applied, _ = quantize_base(spec, compute, loaded, run.formats(loaded), run.ranks, start)
    if run.trained_codes:
        load_layers(loaded.model, run.adapter)
    set_scales(loaded.model, read_scales(run.adapter))
    model = _with_adapter(loaded, adapter).to(compute.device)
    planned = stored_bytes(model).total - adapter_memory(model)
    metrics = _evaluate(model, spec, data, compute)
    taken = start.taken if isinstance(start, PartStart) else {}
    here = str(compute.dtype).removeprefix("torch.")
    notes = differences(run.adapter.parent, here, metrics) if run.precision is not None else []
    return Rebuilt(run, compute, data, loaded, model, applied, adapter, metrics, planned, taken, notes)


def _start_of_base(spec: RunSpec, ranks: dict[str, int]) -> AdapterStart:
    """The start of the run's adapters where the base depends on it, else one that needs no data.

    The base of a residual start is the rounded matrix in the first round, and another one in later rounds.
    """
    init = INITS[spec.init]
    changes_base = init.splits or (init.residual and spec.init_rounds > 1)
    return choose_init(spec, ranks) if changes_base else ResidualStart({})


def _evaluate(model: Any, spec: RunSpec, data: RunData, compute: Compute) -> dict[str, float]:
    objective = objective_for(spec.kind, fused=False)
    return data.evaluate(model, data.validation, objective, compute.device).metrics


def _copy_weight(layer: Any, weight_OI: Tensor) -> None:
    layer.weight.copy_(weight_OI.T if isinstance(layer, Conv1D) else weight_OI)


def _with_adapter(loaded: Loaded, adapter: SavedAdapter) -> Any:
    """Attach ``adapter`` to the base as LoRA, with its scale folded into one factor."""
    parts = {name: part for name, part in adapter.parts.items() if len(part.down_RI)}
    _refuse_shared(loaded.model, parts)
    heads = _trained_heads(loaded, adapter)
    _copy_parameters(loaded.model, _outside_heads(adapter, heads))
    if missing := [head for head in loaded.new_modules if head not in heads]:
        raise UserError(
            f"neither the model nor the adapter has weights for {missing[0]!r}; give the run that trained it"
        )
    scale = AdapterScale(1.0, "constant")
    if parts:
        ranks = {name: len(part.down_RI) for name, part in parts.items()}
        model = attach_lora(loaded.model, ranks, scale=scale, heads=heads)
    else:
        model = attach_frozen(loaded.model, scale=scale, heads=heads)
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
    return [head for head in loaded.trained_modules if f"{head}.weight" in adapter.whole]


def _outside_heads(adapter: SavedAdapter, heads: Sequence[str]) -> dict[str, Tensor]:
    """Parameters of modules that the adapter's author trained whole and that are no heads, such as norms."""
    return {name: tensor for name, tensor in adapter.whole.items() if name.rpartition(".")[0] not in heads}


def _refuse_shared(model: nn.Module, changed: Iterable[str]) -> None:
    """Raise :class:`UserError` if one of the ``changed`` modules shares its weight.

    A merge would change the other modules too.
    """
    tied = tied_modules(model)
    shared = {*tied, *tied.values()}
    for name in changed:
        if name in shared:
            raise UserError(
                f"the adapter changes {name}, whose weight the base shares with another module; merge it "
                "with the library that trained it, which knows whether both changed"
            )


def _copy_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy ``values`` to the parameters of ``model`` with these names, and to its 16-bit matrices.

    Raises :class:`UserError` for a value without a parameter of its shape, and for a parameter that several
    modules share.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    _refuse_shared(model, [name.rpartition(".")[0] for name in values if name.endswith(".weight")])
    users = Counter(id(parameter) for parameter in parameters.values())
    for name, value in values.items():
        matrix = _stored_in_16_bits(model, name)
        target = parameters.get(name) if matrix is None else matrix.weight
        if target is None or target.shape != value.shape:
            found = "no such parameter" if target is None else f"one of shape {list(target.shape)}"
            raise UserError(
                f"the adapter contains {name} of shape {list(value.shape)}, but the model has {found}; give "
                "the base that the adapter was trained on"
            )
        if users[id(target)] > 1:
            raise UserError(
                f"the adapter contains {name}, which the base shares with another module; merge it with the "
                "library that trained it, which knows whether both changed"
            )
        with torch.no_grad():
            if matrix is None:
                target.copy_(value)
            else:
                stored = matrix.quantized
                matrix.quantized = QuantWeight(value.to(target), stored.fmt, stored.compute_dtype)


def _stored_in_16_bits(model: nn.Module, name: str) -> QuantLinear | None:
    """The layer whose weight is called ``name``, if it stores 16 bits and computes in another dtype."""
    place, _, part = name.rpartition(".")
    layer = dict(model.named_modules()).get(place) if part == "weight" else None
    is_stored = isinstance(layer, QuantLinear) and isinstance(layer.quantized.fmt, Float)
    return layer if is_stored else None
