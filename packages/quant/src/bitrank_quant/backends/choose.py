"""Which backend holds a format on this machine, and what a ``--quant-backend`` means here.

Under ``auto`` the first backend that serves a format takes it, if a small matrix goes through it on this
device; those passed over are told with their reasons (:func:`rejected`). A backend asked for by name is taken
or refused, never replaced.
"""

from __future__ import annotations

import torch

from bitrank_quant.backends.base import Backend
from bitrank_quant.backends.overrides import OVERRIDES, Override
from bitrank_quant.backends.probe import tried
from bitrank_quant.backends.registry import BACKENDS, REFERENCE
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.float import Float
from bitrank_quant.formats.parse import parse_format


def choose_backend(fmt: Format, device: str, dtype: torch.dtype = torch.bfloat16) -> Backend:
    """The first of :data:`BACKENDS` that serves ``fmt`` on ``device`` and does it here; plain torch serves
    everything.
    """
    return next(b for b in BACKENDS.values() if b.serves(fmt) and _unfit(b, fmt, device, dtype) is None)


def rejected(fmt: Format, device: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, str]:
    """Backends that come before the one :func:`choose_backend` takes and serve ``fmt``, but not here: name →
    reason.
    """
    chosen = choose_backend(fmt, device, dtype).name
    before = list(BACKENDS)[: list(BACKENDS).index(chosen)]
    reasons = {
        name: _unfit(BACKENDS[name], fmt, device, dtype) for name in before if BACKENDS[name].serves(fmt)
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def override_for(name: str, device: str, dtype: torch.dtype = torch.bfloat16) -> Override:
    """The ``--quant-backend`` called ``name``, checked against ``device``.

    Raises :class:`QuantError` when there is none of that name, or when this machine lacks it; the message
    names those it has.
    """
    if name in OVERRIDES and (reason := _lacks(OVERRIDES[name], device, dtype)) is None:
        return OVERRIDES[name]
    here = ", ".join(available_overrides(device, dtype))
    if name not in OVERRIDES:
        raise QuantError(f"unknown quant backend {name!r}; here: {here} (all: {', '.join(OVERRIDES)})")
    raise QuantError(f"quant backend {name!r} cannot run here: {reason}; here: {here}")


def available_overrides(device: str, dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """The ``--quant-backend`` names that this machine can serve on ``device``, each tried."""
    return [name for name, override in OVERRIDES.items() if _lacks(override, device, dtype) is None]


def check_fits(backend: str, fmt: Format, shape: tuple[int, int], name: str) -> None:
    """Raise :class:`QuantError` when ``backend`` cannot hold the matrix ``name`` of ``shape`` (out, in) in
    ``fmt``.
    """
    if reason := BACKENDS[backend].misfit(fmt, shape):
        raise QuantError(
            f"{name} cannot be stored as {fmt}: {reason}; give another --quant-backend (auto fits every shape), or pin it"
        )


def _lacks(override: Override, device: str, dtype: torch.dtype) -> str | None:
    if override.device is not None and override.device != device:
        return f"it needs device {override.device}, this run is on {device}"
    if override.backend is None:
        return None
    backend, fmt = BACKENDS[override.backend], parse_format(override.format or "bf16")
    if isinstance(fmt, Float):
        return None
    return (
        _unfit(backend, fmt, device, dtype) if backend.serves(fmt) else f"{backend.name} does not serve {fmt}"
    )


def _unfit(backend: Backend, fmt: Format, device: str, dtype: torch.dtype) -> str | None:
    """Why ``backend`` cannot hold ``fmt`` on ``device``. Plain torch is the reference itself: there is
    nothing to try it against.
    """
    if reason := backend.missing(device):
        return reason
    return None if backend is REFERENCE else tried(backend.name, str(fmt), device, dtype)
