"""Choose the backend of a format on this machine, and resolve ``--quant-backend``.

``auto`` takes the first backend that supports a format and passes a probe with a small matrix on this device;
:func:`rejected` gives the reasons for those passed over. A backend requested by name is used or refused,
never replaced.
"""

from __future__ import annotations

import torch

from bitrank_quant.backends.base import Backend
from bitrank_quant.backends.overrides import OVERRIDES, Override
from bitrank_quant.backends.probe import cached_probe
from bitrank_quant.backends.registry import BACKENDS, REFERENCE
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format, row_codes
from bitrank_quant.formats.float import Float
from bitrank_quant.formats.parse import parse_format
from bitrank_quant.packing import end_on_bytes


def choose_backend(
    fmt: Format,
    device: str,
    dtype: torch.dtype = torch.bfloat16,
    given: tuple[int, int] | None = None,
) -> Backend:
    """The first of :data:`BACKENDS` that supports ``fmt`` and works on ``device``; plain torch does.

    ``given`` is the shape (out, in) of a matrix whose codes a quantizer gives: backends that cannot store
    them are passed over, unless no other supports the format.
    """
    first: Backend | None = None
    for backend in BACKENDS.values():
        if not backend.serves(fmt) or _backend_problem(backend, fmt, device, dtype) is not None:
            continue
        if given is None or _takes_codes(backend, fmt, given):
            return backend
        first = first or backend
    assert first is not None, "plain torch stores every format"
    return first


def _takes_codes(backend: Backend, fmt: Format, shape: tuple[int, int]) -> bool:
    return backend.make_from_codes is not None and backend.codes_misfit(fmt, shape) is None


def rejected(fmt: Format, device: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, str]:
    """{backend: reason} of backends before the chosen one that support ``fmt`` but do not work here."""
    chosen = choose_backend(fmt, device, dtype).name
    before = list(BACKENDS)[: list(BACKENDS).index(chosen)]
    reasons = {
        name: _backend_problem(BACKENDS[name], fmt, device, dtype)
        for name in before
        if BACKENDS[name].serves(fmt)
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def override_for(name: str, device: str, dtype: torch.dtype = torch.bfloat16) -> Override:
    """The ``--quant-backend`` called ``name``, checked against ``device``.

    Raises :class:`QuantError` if the name is unknown or unavailable on this machine; the message lists the
    available ones.
    """
    if name in OVERRIDES and (reason := _override_problem(OVERRIDES[name], device, dtype)) is None:
        return OVERRIDES[name]
    here = ", ".join(available_overrides(device, dtype))
    if name not in OVERRIDES:
        raise QuantError(f"unknown quant backend {name!r}; here: {here} (all: {', '.join(OVERRIDES)})")
    raise QuantError(f"quant backend {name!r} cannot run here: {reason}; here: {here}")


def available_overrides(device: str, dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """The ``--quant-backend`` names that work on ``device`` of this machine, each probed."""
    return [
        name for name, override in OVERRIDES.items() if _override_problem(override, device, dtype) is None
    ]


def check_fits(backend: str, fmt: Format, shape: tuple[int, int], name: str) -> None:
    """Raise :class:`QuantError` if ``backend`` cannot store the (out, in) matrix ``name`` in ``fmt``."""
    if reason := BACKENDS[backend].misfit(fmt, shape):
        raise QuantError(
            f"{name} cannot be stored as {fmt}: {reason}; "
            "give another --quant-backend (auto fits every shape), or pin it"
        )


def check_looks_up(fmt: Format, shape: tuple[int, int], name: str) -> None:
    """Raise :class:`QuantError` if no row of the embedding ``name`` can be looked up in ``fmt`` alone."""
    if not end_on_bytes(row_codes(fmt, shape[1]), fmt.bits):
        raise QuantError(
            f"{name} cannot be stored as {fmt}: rows of {shape[1]} weights do not end on a byte, so none can "
            "be looked up; give the embedding a format with a group of 8·k"
        )


def check_takes_codes(backend: str, fmt: Format, shape: tuple[int, int], name: str) -> None:
    """Raise :class:`QuantError` if ``backend`` cannot store given codes of the matrix ``name`` in ``fmt``."""
    entry = BACKENDS[backend]
    if entry.make_from_codes is None:
        reason: str | None = f"{backend} encodes weights itself, by rounding"
    else:
        reason = entry.codes_misfit(fmt, shape)
    if reason:
        raise QuantError(
            f"{name} cannot be stored as {fmt} with the codes of a quantizer: {reason}; give the quantizer "
            "rtn, another format, or the quant backend auto"
        )


def _override_problem(override: Override, device: str, dtype: torch.dtype) -> str | None:
    if override.device is not None and override.device != device:
        return f"it needs device {override.device}, this run is on {device}"
    if override.backend is None:
        return None
    backend, fmt = BACKENDS[override.backend], parse_format(override.format or "bf16")
    if isinstance(fmt, Float):
        return None
    return (
        _backend_problem(backend, fmt, device, dtype)
        if backend.serves(fmt)
        else f"{backend.name} does not serve {fmt}"
    )


def _backend_problem(backend: Backend, fmt: Format, device: str, dtype: torch.dtype) -> str | None:
    """The reason why ``backend`` cannot store ``fmt`` on ``device``; None if it can.

    Plain torch is the reference itself, so it is not probed.
    """
    if reason := backend.missing(device):
        return reason
    return None if backend is REFERENCE else cached_probe(backend.name, str(fmt), device, dtype)
