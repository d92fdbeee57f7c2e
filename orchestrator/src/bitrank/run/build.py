"""Build the model of a run: open, quantize, attach adapters, initialize, move to the device, fuse.

Training runs, short planning runs and benchmarks share this function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitrank_adapters import AdapterStart, adapter_memory, set_dropout
from bitrank_quant import Applied, Decode, decoder, stored_bytes
from bitrank_trainer import ALONE, trainable
from peft import PeftModel
from torch import nn

from bitrank.models.fuse import fuse_model
from bitrank.models.load import Loaded, open_model
from bitrank.models.padding import padding_message
from bitrank.process.compute import Compute, scale_of
from bitrank.run.adapter_init import allocated_ranks, choose_init
from bitrank.run.notices import notice, unfused_message
from bitrank.run.plans import Plans, make_plans, store_base
from bitrank.run.quantizers import encoder
from bitrank.run.record import Record
from bitrank.spec.adapter_hook import AdapterHook
from bitrank.spec.configs import Config
from bitrank.spec.rule_interface import AttachOptions
from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class Built:
    """A trainable model, its rank hook, its tokenizer, and the format and backend of each matrix."""

    model: PeftModel
    hook: AdapterHook
    tokenizer: Any
    applied: dict[str, Applied]


@dataclass(frozen=True)
class Overrides:
    """Parts of a built model that planning and benchmarks replace.

    ``init`` replaces the initialization that the spec names. ``decode`` returns the decoder of a quantized
    module for the fused layers.
    """

    init: AdapterStart | None = None
    decode: Callable[[nn.Module], Decode | None] = decoder


def build_model(
    spec: RunSpec,
    compute: Compute,
    config: Config,
    classes: int | Sequence[str],
    steps: int,
    *,
    record: Record | None = None,
    overrides: Overrides | None = None,
) -> Built:
    """Build the model of ``spec`` with the formats and ranks of ``config``.

    The head has ``classes`` classes; rank schedules span ``steps`` optimizer steps. ``record`` logs the
    plan before it is applied, and the sizes of the quantized model before the record's processes share it.
    Raises the packages' errors for a plan that does not fit the model.
    """
    overrides = overrides or Overrides()
    device, dtype = compute.device, compute.dtype
    loaded = open_model(spec, classes, device, dtype)
    if record is not None and (text := padding_message(loaded.tokenizer, loaded.model.config)):
        record.emit(notice("padding", text))
    plans = make_plans(config, loaded)
    plans = replace(plans, ranks=allocated_ranks(spec, plans.ranks, loaded.model))
    if record is not None:
        _record_plan(record, spec, loaded, plans)
    start = overrides.init or config.rank.start(plans.ranks, encoder(spec))
    applied, init = quantize_base(spec, compute, loaded, plans.formats, plans.ranks, start)
    model, hook = attach_adapters(spec, config, loaded.model, plans.ranks, loaded.trained_modules, steps)
    if record is not None:
        record.model(
            applied, stored_bytes(model).total - adapter_memory(model), trainable(model), loaded.parameters
        )
    processes = ALONE if record is None else record.processes
    processes.shard_base(model)
    model.to(device)
    init.write(model)
    if spec.fused:
        others = fuse_model(model, overrides.decode)
        if others and record is not None:
            record.notices("unfused", [unfused_message(others)])
    return Built(model, hook, loaded.tokenizer, applied)


def _record_plan(record: Record, spec: RunSpec, loaded: Loaded, plans: Plans) -> None:
    record.plan(
        plans.formats,
        plans.ranks,
        plans.quantizable,
        plans.left,
        loaded.parameters,
        loaded.new_modules,
        quantizer=spec.quantizer,
    )
    record.notices("weights", loaded.notices)


def quantize_base(
    spec: RunSpec,
    compute: Compute,
    loaded: Loaded,
    formats: dict[str, str],
    ranks: dict[str, int],
    init: AdapterStart | None = None,
) -> tuple[dict[str, Applied], AdapterStart]:
    """Read and quantize ``loaded`` in ``formats``; the base depends on how adapters start.

    ``init`` defaults to the initialization of ``spec`` for ``ranks``. Returns the format and backend of each
    matrix, and the initialization, which holds the values of the adapters.
    """
    chosen = choose_init(spec, ranks) if init is None else init
    return store_base(spec, loaded, formats, chosen, compute.device, compute.dtype), chosen


def attach_adapters(
    spec: RunSpec, config: Config, model: nn.Module, ranks: dict[str, int], heads: list[str], steps: int
) -> tuple[PeftModel, AdapterHook]:
    """Attach adapters of ``ranks`` to ``model`` by the rank rule of ``config``, as ``spec`` sets them.

    The modules in ``heads`` are trained whole. Rank schedules span ``steps`` optimizer steps.
    """
    attached = config.rank.attach(model, ranks, AttachOptions(scale_of(spec), heads, spec.seed, steps))
    if spec.adapter_dropout:
        set_dropout(attached.model, spec.adapter_dropout)
    return attached
