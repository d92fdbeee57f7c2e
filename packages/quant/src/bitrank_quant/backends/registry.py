"""Backends by name, and the ``--quant-backend`` overrides.

To add one: a file that defines a :class:`~bitrank_quant.backends.base.Backend`, and its line in
:data:`BACKENDS`. Whether a backend works on this machine is probed with a small matrix (see
:mod:`~bitrank_quant.backends.probe`).
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Override:
    """One ``--quant-backend``: the format that replaces all low-bit formats, its backend, and its device."""

    format: str | None
    backend: str | None
    device: str | None
    about: str = ""


OVERRIDES: dict[str, Override] = {
    "auto": Override(None, None, None, "the plan's formats, each in the first backend that serves it"),
    "cuda-4bit": Override("nf4-dq", "bitsandbytes", "cuda", "NF4 by bitsandbytes on CUDA"),
    "cuda-8bit": Override("llm-int8", "bitsandbytes", "cuda", "LLM.int8() by bitsandbytes on CUDA"),
    "cpu-4bit": Override("nf4-dq", "bitsandbytes", "cpu", "NF4 by bitsandbytes on a CPU"),
    "cpu-int8": Override("int8", REFERENCE.name, "cpu", "int8 rows in plain torch on a CPU"),
    "quanto-int4": Override("int4-g64", "quanto", None, "affine 4-bit groups by quanto"),
    "quanto-int8": Override("int8", "quanto", None, "int8 rows by quanto"),
    "none": Override("bf16", REFERENCE.name, None, "nothing is quantized"),
}
