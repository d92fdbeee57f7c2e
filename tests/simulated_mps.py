"""A simulated Apple GPU: tensors that report the device ``mps``, hold CPU data, and refuse what MPS refuses.

Refused are fp64, operations on tensors of different devices, generators of another device, NumPy without a
copy, and operations without an MPS kernel in the list of kernels that torch itself brings along. As in torch
2.13, ``x.to("cpu", torch.float64)`` is refused too, because MPS converts before it copies. Numbers are those
of the CPU: Metal's rounding, limits and speed are not simulated.

To torch's C++ the tensors are on a device of another name, which is registered for the whole process and
changes what libraries find there. So use a process of its own, :func:`install` first, and then
:func:`simulated_mps` around the code, which holds for one thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchgen
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_MPS = torch.device("mps")  # made here, because the simulation translates its name
_INSIDE = "simulated_mps"  # what C++ takes for the device
_NO_FP64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use "
    "float32 instead."
)
_KERNELS = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
_ANYWHERE = {"_fused_sdp_choice"}  # has a default for devices without a kernel
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # accept indices on the CPU


class MpsTensor(torch.Tensor):
    """A tensor on the simulated device, with its data in ``held``."""

    held: torch.Tensor
    # Attributes are those below, not those that C++ would hand out.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> MpsTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            dtype=held.dtype,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            device=torch.device(_INSIDE, 0),
        )
        made.held = held
        return made

    device = property(lambda self: _MPS)
    is_mps = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    """Hands operations to the simulation that have no tensor of it yet, such as copies to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Devices(TorchFunctionMode):
    """Replaces the device ``mps``, which torch for Linux refuses, by the one inside."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in {"tensor", "as_tensor"} and _is_mps(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": None}).to(_INSIDE)  # written by C++ past the simulation
        if name in {"matmul", "__matmul__"} and args[0].dim() == 1 and args[1].dim() == 2:
            return func(args[0][None], args[1])[0]  # C++ would change a shape in place, which no wrapper can
        args = tuple(_inside(value) for value in args)
        return func(*args, **{key: _inside(value) for key, value in kwargs.items()})


def install() -> None:
    """Register the device for this process."""
    _setup_privateuseone_for_python_backend(_INSIDE)


@contextmanager
def simulated_mps() -> Iterator[None]:
    """Simulate MPS in this thread while the context is open."""
    with _Devices(), _Operations():
        yield


@cache
def without_kernel() -> frozenset[str]:
    """The operations whose kernels are listed, none of them for MPS or for every device."""
    entries = {entry.split("(", 1)[0]: entry for entry in _KERNELS.read_text().split("- func: ")[1:]}
    missing = set()
    for name, entry in entries.items():
        delegate = re.search(r"structured_delegate: (\S+)", entry)
        text = entry + (entries[delegate[1]] if delegate else "")
        kernels = set(re.findall(r"\w+", " ".join(re.findall(r"^    ([\w, ]+):", text, re.MULTILINE))))
        if kernels and not any(kernel == "MPS" or kernel.startswith("Composite") for kernel in kernels):
            missing.add(name)
    return frozenset(missing)


def _is_mps(value: object) -> bool:
    device = value.split(":")[0] if isinstance(value, str) else getattr(value, "type", None)
    return isinstance(value, (str, torch.device)) and device in {"mps", _INSIDE}


def _inside(value: Any) -> Any:
    return torch.device(_INSIDE, 0) if _is_mps(value) else value


def _held(value: Any) -> Any:
    return value.held if isinstance(value, MpsTensor) else value


def _put(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype in {torch.float64, torch.complex128}:
        raise TypeError(_NO_FP64)
    return MpsTensor(tensor)


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation on the data, with the refusals of MPS."""
    name = func._schema.name.removeprefix("aten::")
    if name == "_to_copy":
        return _copied(args[0], kwargs)
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, MpsTensor)]
    to_mps = _is_mps(kwargs.get("device"))
    if not here and not to_mps:
        return func(*args, **kwargs)
    _check(func, name, args, kwargs, tensors)
    device = {"device": torch.device("cpu")} if to_mps else {}
    made = func(*tree_map(_held, args), **{**tree_map(_held, kwargs), **device})
    if name == "copy_":
        return args[0]
    given = {id(tensor.held): tensor for tensor in here}

    def put(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return given[id(value)] if id(value) in given else _put(value)  # given: changed in place

    return tree_map(put, made)


def _copied(source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    """A copy between devices, to another dtype, or both."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype") or source.dtype
    to_mps = isinstance(source, MpsTensor) if device is None else _is_mps(device)
    if isinstance(source, MpsTensor) and dtype == torch.float64:
        raise TypeError(_NO_FP64)
    if isinstance(source, MpsTensor) or to_mps:
        made = torch.ops.aten._to_copy.default(_held(source), dtype=dtype)
        return _put(made) if to_mps else made
    return torch.ops.aten._to_copy.default(source, **kwargs)


def _check(func: Any, name: str, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> None:
    """Refuse an operation with a tensor or a result on MPS, as MPS would."""
    if func.name().removeprefix("aten::") in without_kernel() - _ANYWHERE:
        raise NotImplementedError(
            f"The operator 'aten::{name}' is not currently implemented for the MPS device."
        )
    generators = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Generator)]
    if any(generator.device.type != "mps" for generator in generators):
        raise RuntimeError("Expected a 'mps' device type for generator but found 'cpu'")
    if name == "copy_":
        if isinstance(args[1], MpsTensor) and args[0].dtype == torch.float64:
            raise TypeError(_NO_FP64)
        return
    # Indices may be on the CPU; numbers (tensors without dimensions) may be too.
    bound = [args[0], *args[2:]] if name in _INDEXING and isinstance(args[0], MpsTensor) else tensors
    if any(isinstance(one, torch.Tensor) and one.device.type == "cpu" and one.dim() for one in bound):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found mps:0 and cpu (aten::{name})"
        )
