"""Build the model of a run: open, quantize, attach adapters, initialize, move to the device, fuse.

Training runs, short planning runs and benchmarks share this function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bitrank_adapters import ResidualStart, adapter_bytes
from bitrank_quant import Applied, Decode, decoder, stored_bytes
from bitrank_trainer import ALONE, Processes, trainable
from peft import PeftModel
from torch import nn

from bitrank.models.fuse import fuse_model
from bitrank.models.load import open_model
from bitrank.models.padding import padding_message
from bitrank.process.compute import Compute
from bitrank.run.adapter_init import choose_init
from bitrank.run.notices import notice
from bitrank.run.plans import make_plans, store_base
from bitrank.run.record import Record
from bitrank.spec.adapter_hook import AdapterHook
from bitrank.spec.configs import Config
from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class Built:
    """A trainable model, its rank hook, its tokenizer, and the format and backend of each matrix."""

    model: PeftModel
    hook: AdapterHook
    tokenizer: Any
    applied: dict[str, Applied]


def build_model(
    spec: RunSpec,
    compute: Compute,
    config: Config,
    classes: int | Sequence[str],
    steps: int,
    *,
    init: ResidualStart | None = None,
    record: Record | None = None,
    processes: Processes = ALONE,
    decode: Callable[[nn.Module], Decode | None] = decoder,
) -> Built:
    """Build the model of ``spec`` with the formats and ranks of ``config``.

    The head has ``classes`` classes; rank schedules span ``steps`` optimizer steps. ``init`` replaces the
    initialization that the spec names. ``record`` logs the plan before it is applied, and the sizes of the
    quantized model before ``processes`` share it. ``decode`` returns the decoder of a quantized module for
    the fused layers. Raises the packages' errors for a plan that does not fit the model.
    """
    device, dtype = compute.device, compute.dtype
    loaded = open_model(spec, classes, device, dtype)
    if record is not None and (text := padding_message(loaded.tokenizer, loaded.model.config)):
        record.emit(notice("padding", text))
    plans = make_plans(config, loaded)
    if record is not None:
        record.plan(
            plans.bits, plans.ranks, plans.quantizable, plans.left, loaded.parameters, loaded.new_modules
        )
    if record is not None:
        record.notices("weights", loaded.notices)
    if init is None:
        init = choose_init(spec, plans.ranks)
    applied = store_base(spec, loaded, plans.bits, init, device, dtype)
    model, hook = attach_adapters(spec, config, loaded.model, plans.ranks, loaded.trained_modules, steps)
    if record is not None:
        record.model(
            applied, stored_bytes(model).total - adapter_bytes(model), trainable(model), loaded.parameters
        )
    processes.share_out(model)
    model.to(device)
    init.write(model)
    if spec.fused:
        fuse_model(model, decode)
    return Built(model, hook, loaded.tokenizer, applied)


def attach_adapters(
    spec: RunSpec, config: Config, model: nn.Module, ranks: dict[str, int], heads: list[str], steps: int
) -> tuple[PeftModel, AdapterHook]:
    """Attach adapters of ``ranks`` to ``model`` by the rank rule of ``config``, as ``spec`` sets them.

    The modules in ``heads`` are trained whole. Rank schedules span ``steps`` optimizer steps.
    """
    return config.rank.attach(
        model, ranks, total_steps=steps, scale=spec.adapter_scale, heads=heads, seed=spec.seed
    )
