"""One scratch buffer per dtype for decoded matrices.

A product that decodes its matrix in the forward and in the backward pass needs the matrix for a moment only.
New memory for each, thousands of times a second, would leave holes between the tensors that autograd keeps,
and fragment the heap. Autograd does not see the buffer change, so nothing may be saved of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_buffers: dict[torch.dtype, dict[tuple[int, ...], Tensor]] = {}
"""Per dtype the whole buffer under (), and its views by shape: models have few, and a new view takes 3 µs."""


def scratch(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Memory of this process for one decoded matrix, as large as the largest matrix so far."""
    views = _buffers.get(dtype)
    view = None if views is None else views.get(shape)
    return _view(shape, dtype) if view is None else view


def _view(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    count = shape[0] * shape[1]
    if dtype not in _buffers or _buffers[dtype][()].numel() < count:
        # Without the views of the smaller buffer, which would keep it.
        _buffers[dtype] = {(): torch.empty(count, dtype=dtype)}
    views = _buffers[dtype]
    views[shape] = views[()][:count].view(shape)
    return views[shape]
