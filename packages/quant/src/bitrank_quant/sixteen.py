"""Store tensors that no plan can name in 16 bits, where a model computes in 32.

Without this, a plan of 16 bits everywhere would leave them in the compute dtype: the experts of a mixture,
often the largest part of a model, are three-dimensional parameters outside of any linear layer. Such a
parameter becomes a 16-bit buffer of the same name, and the module gets a subclass that decodes it when its
forward pass reads it. Autograd keeps no decoded tensor: saved tensors are stored as views of the buffer, and
decoded again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bitrank_quant.matrices import UnplannedTensor

_Kept = tuple[Tensor, torch.Size, tuple[int, ...], int, torch.dtype]


def store_in_16_bits(
    model: nn.Module, left: Iterable[UnplannedTensor], dtype: torch.dtype = torch.bfloat16
) -> None:
    """Convert the tensors ``left`` of ``model`` to ``dtype``, in place, if they take more bytes.

    Modules compute in the dtype that the tensors had.
    """
    for one in left:
        module_name, _, attribute = one.name.rpartition(".")
        module = model.get_submodule(module_name)
        parameter = module._parameters.get(attribute)
        if (
            parameter is None
            or not parameter.is_floating_point()
            or parameter.element_size() <= dtype.itemsize
        ):
            continue
        del module._parameters[attribute]
        module._buffers[attribute] = parameter.detach().to(dtype)
        module._decoded_dtype = parameter.dtype  # type: ignore[assignment]
        kind: Any = type(module)
        decoded_names = (*getattr(kind, "decoded_names", ()), attribute)
        module.__class__ = _decoding_class(
            kind.replaces if hasattr(kind, "decoded_names") else kind, decoded_names
        )


@cache
def _decoding_class(kind: Any, decoded_names: tuple[str, ...]) -> type[nn.Module]:
    """A subclass of ``kind`` whose attributes ``decoded_names`` are decoded from buffers of the same name."""
    members: dict[str, Any] = {name: property(partial(_decode, name=name)) for name in decoded_names}
    members |= {
        "decoded_names": decoded_names,
        "replaces": kind,
        "forward": _forward,
        "__reduce__": _reduce,
        "__module__": __name__,
    }
    return type(kind.__name__, (kind,), members)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward pass of the replaced class, on decoded tensors."""
    decoded: dict[str, Tensor] = {}
    self.__dict__["_decoded"] = decoded
    try:
        with saved_tensors_hooks(partial(_pack, self._buffers, decoded), _unpack):
            return self.replaces.forward(self, *args, **kwargs)
    finally:
        del self.__dict__["_decoded"]
        decoded.clear()  # the autograd graph references the hooks, and these reference the dictionary


def _reduce(self: Any) -> tuple[Any, ...]:
    # Classes created at run time cannot be found by name when unpickling.
    return _empty, (self.replaces, self.decoded_names), self.__dict__


def _empty(kind: Any, decoded_names: tuple[str, ...]) -> nn.Module:
    made = _decoding_class(kind, decoded_names)
    return made.__new__(made)


def _decode(module: Any, name: str) -> Tensor:
    """The tensor in the compute dtype, decoded once per forward pass, or at each read outside of one."""
    decoded = module.__dict__.get("_decoded", {})
    if name not in decoded:
        decoded[name] = module._buffers[name].to(module._decoded_dtype)
    found: Tensor = decoded[name]
    return found


def _pack(buffers: dict[str, Tensor], decoded: dict[str, Tensor], saved: Tensor) -> Tensor | _Kept:
    for name, whole in decoded.items():
        if saved.untyped_storage()._cdata == whole.untyped_storage()._cdata:
            return buffers[name], saved.shape, saved.stride(), int(saved.storage_offset()), saved.dtype
    return saved


def _unpack(kept: Tensor | _Kept) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    buffer, shape, strides, offset, dtype = kept
    return buffer.as_strided(shape, strides, offset).to(dtype)
