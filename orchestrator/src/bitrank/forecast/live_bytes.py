"""Count live bytes of a model's pass on the ``meta`` device, without its weights or its computing time.

A dispatch mode intercepts every operation and counts each new storage until it is freed. The count includes
exactly what autograd saves for the backward pass, so no separate formula can become outdated.
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = {getattr(torch.ops.aten, name) for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm")}

_INDEX, _INDEX_PUT = torch.ops.aten.index.Tensor, torch.ops.aten._index_put_impl_.default
_UNIQUE = torch.ops.aten.unique_consecutive.default

# Shape, strides and dtype of an operation's output tensor.
_Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


class LiveBytes(TorchDispatchMode):
    """Count the bytes of ``meta`` storages that are allocated inside the block and not yet freed.

    ``now`` is the current count, ``peak`` its maximum; ``products`` holds each matrix product's operation and
    shapes once. A scalar read from a ``meta`` tensor is taken to be 1: without data nothing is padded, and
    masks let every position pass. An operation's output layout depends on the shapes, strides and dtypes of
    its inputs alone, so the layout is cached and the operation skipped for repeated inputs. PyTorch derives
    many layouts in Python, and a model has dozens of equal layers, so this saves most of the time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.products: set[tuple[object, ...]] = set()
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._answers: dict[object, _Layout] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1
        if func.overloadpacket in _PRODUCTS:
            self.products.add((func.overloadpacket, *(t.shape for t in args if isinstance(t, Tensor))))
        kind = _kind(func)
        key = (func, _signature(args), _signature(kwargs or {})) if kind else None
        if key in self._answers:
            if kind == "changes":
                return args[0]
            shape, strides, dtype = self._answers[key]
            return self._counted(torch.empty_strided(shape, strides, dtype=dtype, device="meta"), set())
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = _by_values(func, args)
        if made is None:
            made = func(*args, **(kwargs or {}))
        if (
            key
            and isinstance(made, Tensor)
            and made.is_meta
            and (_is_new(made, known) if kind == "makes" else _signature(made) == key[1][0])
        ):
            self._answers[key] = (tuple(made.shape), made.stride(), made.dtype)
        return self._counted(made, known)

    def _counted(self, made: Any, known: set[int]) -> Any:
        for tensor in (made,) if isinstance(made, Tensor) else tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._count(tensor.untyped_storage(), known)
        return made

    def _count(self, storage: Any, known: set[int]) -> None:
        key = id(storage)
        if key in self._seen or key in known:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._seen[key] = weakref.ref(storage, lambda _: self._freed(key, size))

    def _freed(self, key: int, size: int) -> None:
        del self._seen[key]
        self.now -= size


@cache
def _kind(func: Any) -> str:
    """Classify the operation ``func`` for the layout cache.

    ``makes`` if it returns one new tensor; ``changes`` if it writes to its first argument and returns it
    (possibly with another shape, as ``squeeze_`` does); empty if it returns a view or several tensors.
    """
    inputs, outputs = func._schema.arguments, func._schema.returns
    shared = [part.alias_info for part in inputs if part.alias_info is not None]
    if len(outputs) != 1:
        return ""
    if not shared:
        return "makes" if outputs[0].alias_info is None else ""
    first = inputs[0].alias_info
    return (
        "changes"
        if func._schema.name.endswith("_") and len(shared) == 1 and first is not None and first.is_write
        else ""
    )


def _is_new(tensor: Tensor, known: set[int]) -> bool:
    """Return whether ``tensor`` fills its storage and shares it with no known tensor.

    The schema alone is not enough: ``_unsafe_view`` shares storage although its schema declares a new tensor.
    """
    storage = tensor.untyped_storage()
    return storage.nbytes() == tensor.numel() * tensor.itemsize and id(storage) not in known


def _signature(value: Any) -> Any:
    """Return a hashable key of everything about ``value`` that an operation on ``meta`` can depend on.

    The type is part of the key, because 1, 1.0 and True are equal and give different dtypes.
    """
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple(map(_signature, value))
    if isinstance(value, dict):
        return tuple((key, _signature(entry)) for key, entry in value.items())
    return type(value), value


def _by_values(func: Any, args: Any) -> Any:
    """The result of an operation whose shape depends on values, for one marked token per sequence; else None.

    Heads of encoder-decoders (T5, BART) take the hidden state of the token ``</s>``, which they find by its
    id, and check that every sequence has the same number of them. The tokenizer adds one to each text.
    """
    if func is _UNIQUE and args[0].is_meta:
        return args[0][:1].clone(), *(args[0].new_empty((0,), dtype=torch.int64) for _ in range(2))
    if func not in (_INDEX, _INDEX_PUT) or not args[0].is_meta:
        return None
    mask_BT = args[1][0]
    if mask_BT is None or mask_BT.dtype != torch.bool or mask_BT.ndim != 2:
        return None
    return args[0][:, 0].clone() if func is _INDEX else args[0]
