"""Backends by name.

To add one: a file that defines a :class:`~bitrank_quant.backends.base.Backend`, and its line in
:data:`BACKENDS`. Whether a backend works on this machine is probed with a small matrix (see
:mod:`~bitrank_quant.backends.probe`).
"""

from __future__ import annotations

from torch import nn

from bitrank_quant.backends import bitsandbytes, quanto, reference
from bitrank_quant.backends.base import Backend

REFERENCE = reference.BACKEND
# `auto` takes the first that supports a format. quanto is last: a step took 1.7 (int8) and 2.3 (int4) times a
# bf16 step on a CPU.
_IN_ORDER = [
    bitsandbytes.BACKEND,
    REFERENCE,
    quanto.BACKEND,
]
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _IN_ORDER}


def backend_of(layer: nn.Module) -> Backend | None:
    """The backend that made ``layer``; None for other modules, including unquantized ones."""
    for backend in BACKENDS.values():
        if backend.owns(layer):
            return backend
    return None
