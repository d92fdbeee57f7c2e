"""Which exceptions say that memory ran out. Allocators have a type of their own on CUDA and ROCm alone; elsewhere their words tell."""

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
    """Whether ``error`` means that a tensor found no room, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
