"""Count the bytes that a model stores: codes, scales, nested scales, and unquantized tensors.

Every storage reachable from a module counts once, so tied weights count once. Tensors inside tensor
subclasses are included; each backend lists the tensors that its library keeps elsewhere. Masks that no file
stores are not counted: runtimes make their own, and GPT-Neo's take the square of the longest text in a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitrank_quant.backends.registry import backend_of


@dataclass(frozen=True)
class Footprint:
    """Stored bytes of a model: the ``total``, and ``modules`` by name of the owning module."""

    total: int
    modules: dict[str, int]

    def bits_per_parameter(self, parameters: int) -> float:
        """Stored bits per base parameter, with scales and unquantized parts."""
        return self.total * 8 / parameters


def stored_bytes(model: nn.Module) -> Footprint:
    """Bytes of all parameters, buffers and hidden quantization state of ``model``, each storage once.

    Buffers for which :func:`is_mask` holds are left out.
    """
    seen: set[tuple[torch.device, int]] = set()
    modules: dict[str, int] = {}
    for name, module in model.named_modules():
        for tensor in _own_tensors(module):
            key = (tensor.device, tensor.untyped_storage().data_ptr())
            if tensor.numel() and key not in seen:
                seen.add(key)
                modules[name] = modules.get(name, 0) + tensor.untyped_storage().nbytes()
    return Footprint(sum(modules.values()), modules)


def is_mask(module: nn.Module, name: str) -> bool:
    """Whether the buffer ``name`` of ``module`` is boolean and part of no file, such as a causal mask."""
    buffer = module._buffers[name]
    return buffer is not None and buffer.dtype == torch.bool and name in module._non_persistent_buffers_set


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    buffers = [buffer for name, buffer in module._buffers.items() if not is_mask(module, name)]
    for tensor in (*module._parameters.values(), *buffers):
        if tensor is not None:
            yield from _leaves(tensor)
    backend = backend_of(module)
    if backend is not None:
        yield from backend.hidden_tensors(module)


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that make up ``tensor``: itself, or the inner tensors of a subclass."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _leaves(getattr(tensor, name))
        return
    yield tensor.data
