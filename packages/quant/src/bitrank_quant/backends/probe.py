"""Probe a backend with a small matrix: encode, multiply, back-propagate, and compare with the reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from bitrank_quant.backends.base import Backend
from bitrank_quant.backends.registry import BACKENDS
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.parse import parse_format

_OUT, _IN, _ROWS = 64, 128, 16
# Relative to the norm of output or gradient; int8 activations and quanto's choice of scales stay below it.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Trial:
    """The result of a probe: ``problem`` is None if it passed.

    Errors are relative to the norm of the output and of the input's gradient.
    """

    problem: str | None
    output_error: float | None = None
    gradient_error: float | None = None


def try_format(backend: Backend, fmt: Format, device: str, dtype: torch.dtype = torch.bfloat16) -> Trial:
    """Run ``backend`` with a 64 × 128 matrix in ``fmt`` on ``device``, forward and backward.

    Uses its own random generator, and leaves the global one unchanged.
    """
    try:
        return _try(backend, fmt, device, dtype)
    except Exception as problem:  # noqa: BLE001 - any error of a driver or kernel is a result of the probe
        message = " ".join(str(problem).split()) or "no message"
        return Trial(f"{type(problem).__name__}: {message}"[:200])


def probe(backend: Backend, fmt: Format, device: str, dtype: torch.dtype = torch.bfloat16) -> str | None:
    """None if ``backend`` can store ``fmt`` on ``device``, otherwise the reason why not."""
    return try_format(backend, fmt, device, dtype).problem


@cache
def cached_probe(backend: str, fmt: str, device: str, dtype: torch.dtype) -> str | None:
    """:func:`probe` by backend name and format text, cached per process."""
    return probe(BACKENDS[backend], parse_format(fmt), device, dtype)


def _try(backend: Backend, fmt: Format, device: str, dtype: torch.dtype) -> Trial:
    generator = torch.Generator().manual_seed(0)
    layer = nn.utils.skip_init(nn.Linear, _IN, _OUT, device=device, dtype=dtype).requires_grad_(False)
    for parameter in (layer.weight, layer.bias):
        parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * _IN**-0.5)
    x_NI = torch.randn(_ROWS, _IN, generator=generator).to(device, dtype).requires_grad_(True)
    want_OI = fmt.decode(fmt.encode(layer.weight), (_OUT, _IN), torch.float32)
    expected = x_NI.detach().float() @ want_OI.T + layer.bias.float()
    got = backend.make(layer, fmt, dtype)(x_NI)
    got.sum().backward()
    if x_NI.grad is None or not bool(torch.isfinite(x_NI.grad).all()):
        return Trial("no gradient reaches the input")
    output_error = _relative(got.detach(), expected)
    gradient_error = _relative(x_NI.grad, want_OI.sum(0).expand(_ROWS, _IN))
    worse = max(output_error, gradient_error)
    off = (
        None
        if worse < _TOLERANCE
        else f"{'output' if worse == output_error else 'gradient'} is off by {worse:.1%} from the reference"
    )
    return Trial(off, output_error, gradient_error)


def _relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())
