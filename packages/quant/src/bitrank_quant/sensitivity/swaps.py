"""Other weights in the place of a matrix and of the heads tied to it, for as long as it is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from bitrank_quant.apply import replace_module
from bitrank_quant.matrices import WeightMatrix
from bitrank_quant.reference import QuantEmbedding, QuantLinear, QuantWeight

Modules = Mapping[str, nn.Module]


def modules_of(model: nn.Module, matrix: str, matrices: Iterable[WeightMatrix]) -> dict[str, nn.Module]:
    """The modules that hold ``matrix``: its own, and the heads tied to it."""
    return {m.name: model.get_submodule(m.name) for m in matrices if matrix in (m.name, m.tied_to)}


def over(weight: QuantWeight, modules: Modules) -> dict[str, nn.Module]:
    """Modules that compute as ``modules`` do, over another weight."""
    return {name: _over(weight, module) for name, module in modules.items()}


def put(model: nn.Module, modules: Modules) -> None:
    """Put ``modules`` in their places."""
    for name, module in modules.items():
        replace_module(model, name, module)


def compute_dtype(module: nn.Module) -> torch.dtype:
    """What a linear layer, ``Conv1D`` or embedding multiplies in, or gives."""
    if isinstance(module, (QuantLinear, QuantEmbedding)):
        return module.quantized.compute_dtype
    dtype: torch.dtype = module.weight.dtype  # type: ignore[union-attr,assignment]
    return dtype


def _over(weight: QuantWeight, module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return QuantEmbedding(weight, module.padding_idx)
    return QuantLinear(weight, module.bias)  # type: ignore[arg-type]
