"""One scratch buffer per dtype for decoded matrices.

A product that decodes its matrix in the forward and the backward pass needs it only briefly. New memory for
each, thousands of times a second, would fragment the heap between the tensors that autograd keeps. Autograd
does not notice that the buffer changes, so no view of it may be saved for the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

_buffers: dict[torch.dtype, dict[tuple[int, ...], Tensor]] = {}
"""Per dtype the whole buffer under (), and cached views by shape: models have few, a new view costs 3 µs."""


def scratch(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Process-wide memory for one decoded matrix, as large as the largest matrix so far."""
    views = _buffers.get(dtype)
    view = None if views is None else views.get(shape)
    return _view(shape, dtype) if view is None else view


def _view(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    count = shape[0] * shape[1]
    if dtype not in _buffers or _buffers[dtype][()].numel() < count:
        # Drop the views of the smaller buffer: they would keep it alive.
        _buffers[dtype] = {(): torch.empty(count, dtype=dtype)}
    views = _buffers[dtype]
    views[shape] = views[()][:count].view(shape)
    return views[shape]
