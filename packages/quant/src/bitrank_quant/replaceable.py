"""Decide which modules can be replaced by quantized ones, and why others cannot.

A quantized layer is equivalent to the module it replaces only if that module's forward pass is known: a
matrix product, or an embedding look-up, possibly through the ``super().forward`` of a subclass. A module with
an unknown forward pass keeps its weight and is reported (:func:`~bitrank_quant.matrices.left_out`), so that
no result changes silently.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from bitrank_quant.backends.reference import QuantEmbedding
from bitrank_quant.backends.registry import backend_of

# These classes define ``forward`` themselves, but as x Wᵀ + b.
_PLAIN_PRODUCTS = {"transformers.models.falcon.modeling_falcon.FalconLinear"}


def is_matrix(module: nn.Module) -> bool:
    """Whether ``module`` is a linear layer, a ``Conv1D``, an embedding, or a subclass of one."""
    return isinstance(module, (nn.Linear, nn.Embedding, Conv1D))


def why_not_replaceable(module: nn.Module) -> str | None:
    """The reason why a quantized layer cannot replace ``module``; None if it can.

    ``module`` is a linear layer, ``Conv1D`` or embedding.
    """
    kind: Any = type(module)
    if "forward" in vars(module):
        return "its forward pass was replaced"
    if module._parameters.get("weight") is None and "quantized" not in module._modules:
        return "its weight is computed from other tensors"
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None:
            return "max_norm changes its rows at every look-up"
        return (
            None
            if _looks_up(kind)
            else f"the forward pass of {kind.__name__} does not call that of nn.Embedding"
        )
    if kind is NonDynamicallyQuantizableLinear:
        return "nn.MultiheadAttention multiplies by its weight itself"
    plain: type[nn.Module] = Conv1D if isinstance(module, Conv1D) else nn.Linear
    known = (
        kind.forward is plain.forward
        or f"{kind.__module__}.{kind.__qualname__}" in _PLAIN_PRODUCTS
        or backend_of(module) is not None
    )
    return None if known else f"the forward pass of {kind.__name__} is not that of {plain.__name__}"


def readers_of_weights(model: nn.Module) -> set[str]:
    """Names of the modules whose ``weight`` is read by their parent, so that it must be a decoded matrix.

    T5, for instance, casts the input of ``wo`` to the dtype of its weight, and bitsandbytes' codes are uint8.
    """
    found = set()
    for name, parent in model.named_modules():
        kind: Any = type(parent)
        for child in _children_read(kind):
            if child in parent._modules:
                found.add(f"{name}.{child}" if name else child)
    return found


@cache
def _looks_up(kind: Any) -> bool:
    """Whether every forward pass between ``kind`` and ``nn.Embedding`` calls that of its parent class."""
    between = kind.__mro__[: kind.__mro__.index(nn.Embedding)]
    return all(
        _calls_parent(vars(cls)["forward"])
        for cls in between
        if "forward" in vars(cls) and not issubclass(cls, QuantEmbedding)
    )


def _calls_parent(forward: object) -> bool:
    code = getattr(inspect.unwrap(forward), "__code__", None)  # type: ignore[arg-type]
    names = getattr(code, "co_names", ())
    return "super" in names and "forward" in names


@cache
def _children_read(kind: Any) -> frozenset[str]:
    """Attributes whose ``weight`` is read by a method of ``kind``, as in ``self.wo.weight.dtype``.

    Methods of torch's own classes, and methods that initialise or tie weights, do not count.
    """
    found: set[str] = set()
    for cls in kind.__mro__:
        if cls.__module__.startswith("torch."):
            continue
        for name, method in vars(cls).items():
            if isinstance(method, FunctionType) and "init" not in name and "tie" not in name:
                found.update(_weights_read(inspect.unwrap(method)))
    return frozenset(found)


def _weights_read(method: FunctionType) -> Iterator[str]:
    instructions = [
        step for step in dis.get_instructions(method) if step.opname not in ("CACHE", "EXTENDED_ARG")
    ]
    for first, second in pairwise(instructions):
        if first.opname == second.opname == "LOAD_ATTR" and second.argval == "weight":
            yield first.argval
