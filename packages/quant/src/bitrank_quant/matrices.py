"""The weight matrices of a model, as plain data: what a precision or rank plan can name.

A *block* matrix is a linear layer inside the repeated transformer blocks. Its role is read from its path:
attention when a component of the path speaks of attention, feed-forward otherwise. That rule holds for BERT,
DistilBERT, GPT-2, GPT-Neo, Llama and T5, and is tested on them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from bitrank_quant.understood import is_matrix, why_left


@dataclass(frozen=True)
class WeightMatrix:
    """One matrix: its module name, role, block number (None outside the blocks) and stored shape (out, in).

    ``tied_to`` names the module that owns the weight where several share it; the others follow its format.
    """

    name: str
    role: str  # "attention", "cross-attention", "ffn", "embedding", "head", "other"
    layer: int | None
    shape: tuple[int, int]
    tied_to: str | None = None

    @property
    def adaptable(self) -> bool:
        """Whether LoRA may adapt it: inside a block, and larger than an adapter of rank 1 (gates of one
        output are not)."""
        return self.layer is not None and self.role != "embedding" and min(self.shape) > 1


@dataclass(frozen=True)
class LeftOut:
    """A tensor of ``numbers`` weights that no plan can name: it stays in 16 bits, for ``reason``."""

    name: str
    numbers: int
    reason: str


def weight_matrices(model: nn.Module) -> list[WeightMatrix]:
    """Every linear, ``Conv1D`` and embedding matrix of ``model`` that can be quantized, in module order.

    Modules that share one weight (a head and its embedding, the tables of an encoder and its decoder) are all
    listed; each but the owner has ``tied_to``. Modules whose forward pass is not known are absent: see
    :func:`left_out`.
    """
    tied, left = tied_modules(model), _modules_left(model)
    return [_describe(name, module, tied.get(name)) for name, module in _matrices(model) if name not in left]


def tied_modules(model: nn.Module) -> dict[str, str]:
    """Modules that share the weight of another one: {name: owner}. The owner is the first embedding, or else
    the first module."""
    groups: dict[int, list[str]] = {}
    for name, module in _matrices(model):
        if (held := _held(module)) is not None:
            groups.setdefault(id(held), []).append(name)
    tied: dict[str, str] = {}
    for names in groups.values():
        tables = [name for name in names if isinstance(model.get_submodule(name), nn.Embedding)]
        owner = (tables or names)[0]
        tied |= {name: owner for name in names if name != owner}
    return tied


def followers(model: nn.Module) -> dict[str, list[str]]:
    """{owner: modules that share its weight}, both by name."""
    found: dict[str, list[str]] = {}
    for name, owner in tied_modules(model).items():
        found.setdefault(owner, []).append(name)
    return found


def left_out(model: nn.Module, without: Collection[str] = ()) -> list[LeftOut]:
    """Tensors of two dimensions or more that no plan can name, largest first: modules whose forward pass is
    not known, and weights that lie in no linear layer or embedding, such as the three-dimensional ones of
    experts. Modules named in ``without`` do not count."""
    left = _modules_left(model)
    seen = {id(_held(module)) for name, module in _matrices(model) if name not in left}
    found = []
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        if (
            parameter.ndim < 2
            or id(parameter) in seen
            or any(f"{name}.".startswith(f"{skipped}.") for skipped in without)
        ):
            continue
        seen.add(id(parameter))
        reason = (
            left.get(module)
            or f"{parameter.ndim} dimensions, in a {type(model.get_submodule(module)).__name__}"
        )
        found.append(LeftOut(name, parameter.numel(), reason))
    return sorted(found, key=lambda one: -one.numbers)


def block_matrices(model: nn.Module) -> list[WeightMatrix]:
    """The linear matrices inside the transformer blocks that LoRA adapts."""
    return [matrix for matrix in weight_matrices(model) if matrix.adaptable]


def _matrices(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if is_matrix(module)]


def _held(module: nn.Module) -> object:
    """What holds the weight of ``module``: its parameter, or the codes of a quantized one. Two modules with
    the same share it."""
    quantized = module._modules.get("quantized")
    return module._parameters.get("weight") if quantized is None else quantized


def _modules_left(model: nn.Module) -> dict[str, str]:
    """{module: reason} of the matrices that stay as they are; with one of them stay all that share its
    weight."""
    found = {name: reason for name, module in _matrices(model) if (reason := why_left(module)) is not None}
    for owner, others in followers(model).items():
        group = [owner, *others]
        cause = next((name for name in group if name in found), None)
        for name in group if cause else ():
            found.setdefault(name, f"it shares its weight with {cause}: {found[cause]}")  # type: ignore[index]
    return found


def _describe(name: str, module: nn.Module, tied_to: str | None) -> WeightMatrix:
    shape = _shape(module)
    block = re.search(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.", name)
    layer = int(block[1]) if block else None
    return WeightMatrix(name, _role(name, module, layer), layer, shape, tied_to)


def _shape(module: Any) -> tuple[int, int]:
    """(out, in) of a matrix; libraries store a quantized one in another shape."""
    if isinstance(module, nn.Linear):
        return int(module.out_features), int(module.in_features)
    rows, columns = module.weight.shape
    return (int(columns), int(rows)) if isinstance(module, Conv1D) else (int(rows), int(columns))


def _role(name: str, module: nn.Module, layer: int | None) -> str:
    path = name.lower()
    if isinstance(module, nn.Embedding):
        return "embedding"
    if layer is None:
        return "head" if re.search(r"(lm_head|classifier|score|qa_outputs)(\.|$)", path) else "other"
    if re.search(r"crossattention|encdecattention", path):
        return "cross-attention"
    return "attention" if "attn" in path or "attention" in path else "ffn"
