"""Recognition of out-of-memory exceptions.

Only CUDA and ROCm allocators raise an exception type for it; the others need a comparison of messages.
"""

from __future__ import annotations

import torch

_WORDS = (
    "mps backend out of memory",
    "defaultcpuallocator: can't allocate memory",  # Linux, macOS
    "defaultcpuallocator: not enough memory",  # Windows
    "std::bad_alloc",
    "could not create a memory object",  # oneDNN
    "out of memory",  # drivers: "CUDA error: out of memory", "HIP out of memory"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is an out-of-memory error of any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
