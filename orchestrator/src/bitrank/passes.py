"""Run a model on the ``meta`` device and count the bytes that are alive: activations of a pass without its weights or its time.

Every operation is seen by a dispatch mode; the storages it makes count until they are freed. What is counted is what the real code
asks for, with autograd's own rules of what is kept, not a formula that could drift from it.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from bitrank_data import Batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = {getattr(torch.ops.aten, name) for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm")}


class LiveBytes(TorchDispatchMode):
    """Bytes of ``meta`` storages made inside the block and not freed: ``now``, and the greatest, ``peak``; ``products`` are the matrix
    products that were asked for, each shape once.

    Numbers read from such tensors are taken to be 1: no data means that nothing is padded, and masks let everything pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.products: set[tuple[object, ...]] = set()
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1
        if func.overloadpacket in _PRODUCTS:
            self.products.add((func.overloadpacket, *(t.shape for t in args if isinstance(t, Tensor))))
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
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


def full_batch(rows: int, width: int, kind: str) -> Batch:
    """A batch of ``rows`` sequences that are all ``width`` tokens long."""
    ids_BT = np.ones((rows, width), dtype=np.int64)
    labels = np.zeros(rows, dtype=np.int64) if kind == "classification" else ids_BT
    return {"input_ids": ids_BT, "attention_mask": np.ones_like(ids_BT), "labels": labels, "index": np.arange(rows)}
