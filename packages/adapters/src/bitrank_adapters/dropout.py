"""Dropout of the inputs of adapters: W x + s · B A dropout(x) while training (Hu et al. 2022)."""

from __future__ import annotations

from peft import PeftModel
from torch import nn

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.rank_hooks import adapted

_ADAPTER = "default"


def set_dropout(model: PeftModel, probability: float) -> None:
    """Let every adapter of ``model`` drop inputs with ``probability``, from 0 to below 1, while training.

    Call it before layers are fused: layers with dropout keep PEFT's computation. Raises
    :class:`AdapterError` if no matrix has an adapter, and for adapters whose computation is not PEFT's and
    has no dropout.
    """
    if not 0 <= probability < 1:
        raise AdapterError(f"the dropout of adapters must be at least 0 and below 1, got {probability}")
    layers = dict(adapted(model))
    if not layers:
        raise AdapterError("no matrix has an adapter, so there is nothing to drop; leave out adapter_dropout")
    for name, layer in layers.items():
        if not type(layer).__module__.startswith("peft."):
            raise AdapterError(
                f"the adapter of {name} ({type(layer).__name__}) computes without dropout; leave out "
                "adapter_dropout, or give another rank rule"
            )
        layer.lora_dropout[_ADAPTER] = nn.Dropout(probability) if probability else nn.Identity()
    model.peft_config[_ADAPTER].lora_dropout = probability  # type: ignore[union-attr]
