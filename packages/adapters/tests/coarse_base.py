"""Models whose matrices are stored as a quantizing loader stores them, by a minimal quantizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def coarse(weight_OI: Tensor) -> Tensor:
    """A minimal quantizer: three bits over the range of each row."""
    low, high = weight_OI.amin(1, keepdim=True), weight_OI.amax(1, keepdim=True)
    step = (high - low) / 7
    return ((weight_OI - low) / step).round() * step + low


def exact(weight_OI: Tensor) -> Tensor:
    """A format without error."""
    return weight_OI


def split_model(model: Any, start: Any, names: list[str], store: Any = coarse) -> dict[str, Tensor]:
    """Store plain linear layers like a quantizing loader; return the original weights."""
    before = {}
    for name in names:
        weight = model.get_submodule(name).weight
        before[name] = weight.detach().clone()
        weight.data = store(start.split(name, weight.detach(), store))
    return before


def effective_weight(layer: Any) -> Tensor:
    """Effective weight of the adapted layer, from PEFT's own forward pass."""
    return layer(torch.eye(layer.in_features)).T.detach()
