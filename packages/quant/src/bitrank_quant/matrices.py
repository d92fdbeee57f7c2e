"""The weight matrices of a model as plain data: everything that a precision or rank plan can name.

A *block* matrix is a linear layer inside the repeated transformer blocks. Its role comes from its path:
attention if a component of the path contains "attn" or "attention", feed-forward otherwise. Cross-attention
has names of its own (T5: EncDecAttention; BART: encoder_attn; GPT-2: crossattention). The rule holds for
BERT, DistilBERT, GPT-2, GPT-Neo, Llama, T5 and BART, and is tested on them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from bitrank_quant.replaceable import is_matrix, why_not_replaceable

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


@dataclass(frozen=True)
class WeightMatrix:
    """One matrix: module name, role, block number (None outside the blocks) and shape (out, in).

    ``tied_to`` names the module that owns the weight if several share it; the others use its format.
    """

    name: str
    role: str  # "attention", "cross-attention", "ffn", "embedding", "head", "other"
    layer: int | None
    shape: tuple[int, int]
    tied_to: str | None = None

    @property
    def stack(self) -> str:
        """The module name of the list of blocks that the matrix is in; empty outside the blocks.

        An encoder and a decoder each count their blocks from 0.
        """
        return _stack(self.name, self.layer)

    @property
    def adaptable(self) -> bool:
        """Whether LoRA may adapt it: a block matrix larger than a rank-1 adapter, unlike one-output gates."""
        return self.layer is not None and self.role != "embedding" and min(self.shape) > 1


@dataclass(frozen=True)
class UnplannedTensor:
    """A tensor of ``numbers`` weights that no plan can name: it stays in 16 bits, for ``reason``."""

    name: str
    numbers: int
    reason: str


def weight_matrices(model: nn.Module) -> list[WeightMatrix]:
    """Every linear, ``Conv1D`` and embedding matrix of ``model`` that can be quantized, in module order.

    Modules that share one weight (a head and its embedding, the tables of an encoder and its decoder) are all
    listed; each except the owner has ``tied_to``. Modules with an unknown forward pass are absent: see
    :func:`left_out`.
    """
    tied, left = tied_modules(model), _unquantizable(model)
    return [_describe(name, module, tied.get(name)) for name, module in _matrices(model) if name not in left]


def tied_modules(model: nn.Module) -> dict[str, str]:
    """{name: owner} of modules that share another module's weight.

    The owner is the first embedding that uses the weight, or else the first module.
    """
    groups: dict[int, list[str]] = {}
    for name, module in _matrices(model):
        if (weight := _weight_object(module)) is not None:
            groups.setdefault(id(weight), []).append(name)
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


def left_out(model: nn.Module, without: Collection[str] = ()) -> list[UnplannedTensor]:
    """Tensors of two or more dimensions that no plan can name, largest first.

    These are weights of modules with an unknown forward pass, and weights outside of linear layers and
    embeddings, such as the three-dimensional ones of experts. Modules named in ``without`` are skipped.
    """
    left = _unquantizable(model)
    seen = {id(_weight_object(module)) for name, module in _matrices(model) if name not in left}
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
        found.append(UnplannedTensor(name, parameter.numel(), reason))
    return sorted(found, key=lambda one: -one.numbers)


def block_matrices(model: nn.Module) -> list[WeightMatrix]:
    """The linear matrices inside the transformer blocks that LoRA can adapt."""
    return [matrix for matrix in weight_matrices(model) if matrix.adaptable]


def _matrices(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if is_matrix(module)]


def _weight_object(module: nn.Module) -> object:
    """The object that stores the weight of ``module``: its parameter, or the codes of a quantized module.

    Modules share a weight if and only if they share this object.
    """
    quantized = module._modules.get("quantized")
    return module._parameters.get("weight") if quantized is None else quantized


def _unquantizable(model: nn.Module) -> dict[str, str]:
    """{module: reason} of matrices that cannot be quantized, including all that share a weight with one."""
    found = {
        name: reason
        for name, module in _matrices(model)
        if (reason := why_not_replaceable(module)) is not None
    }
    for owner, others in followers(model).items():
        group = [owner, *others]
        cause = next((name for name in group if name in found), None)
        if cause:
            for name in group:
                found.setdefault(name, f"it shares its weight with {cause}: {found[cause]}")
    return found


def _describe(name: str, module: nn.Module, tied_to: str | None) -> WeightMatrix:
    shape = _shape(module)
    block = _BLOCK.search(name)
    layer = int(block[1]) if block else None
    return WeightMatrix(name, _role(name, module, layer), layer, shape, tied_to)


def _stack(name: str, layer: int | None) -> str:
    block = _BLOCK.search(name)
    return "" if layer is None or block is None else name[: block.start(1) - 1]


def _shape(module: Any) -> tuple[int, int]:
    """(out, in) of a matrix; some libraries store a quantized one in another shape."""
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
    if re.search(r"cross_?att|encdecattention|encoder_attn", path):
        return "cross-attention"
    return "attention" if "attn" in path or "attention" in path else "ffn"
