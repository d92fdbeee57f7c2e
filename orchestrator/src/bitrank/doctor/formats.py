"""Try every format on every backend that supports it.

A trial encodes a matrix, multiplies, differentiates, and compares the results with the reference.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch


def try_formats(device: str, dtype: torch.dtype) -> dict[str, dict[str, dict[str, Any]]]:
    """Return format → backend → trial.

    A trial has ``problem`` (None if it succeeded) and the relative errors of output and gradient.
    """
    from bitrank_quant import BACKENDS, FORMATS, Trial, try_format

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for text, fmt in FORMATS.items():
        for name, backend in BACKENDS.items():
            if fmt.bits < 16 and backend.serves(fmt):
                reason = backend.missing(device)
                trial = Trial(reason) if reason else try_format(backend, fmt, device, dtype)
                found.setdefault(text, {})[name] = asdict(trial)
    return found
