"""Backends by name.

To add one: a file that defines a :class:`~bitrank_quant.backends.base.Backend`, and its line in
:data:`BACKENDS`. What a backend really does on this machine is tried on a small matrix (see
:mod:`~bitrank_quant.backends.probe`).
"""

from __future__ import annotations

from torch import nn

from bitrank_quant.backends import bitsandbytes, quanto, reference
from bitrank_quant.backends.base import Backend

REFERENCE = reference.BACKEND
# First that serves a format wins under `auto`. quanto comes last: its int8 took 1.7 and its int4 2.3 times a
# bf16 step on a CPU.
_IN_ORDER = [
    bitsandbytes.BACKEND,
    REFERENCE,
    quanto.BACKEND,
]
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _IN_ORDER}


def backend_of(layer: nn.Module) -> Backend | None:
    """The backend whose layer ``layer`` is; None for other modules, unquantized ones among them."""
    for backend in BACKENDS.values():
        if backend.owns(layer):
            return backend
    return None
