"""Measure the speed of matrix products for each dtype of a device."""

from __future__ import annotations

import time

# Products on an accelerator are larger, so that computing takes longer than launching the kernels.
_SIDE, _ACCELERATOR_SIDE = (
    1024,
    4096,
)
_SECONDS = 0.5


def gflops(dtype: str, device: str) -> float | str:
    """Return GFLOP/s of square products over half a second, or the reason why the dtype fails.

    At least one product is measured, or 32 on an accelerator.
    """
    try:
        return round(_measured(dtype, device), 1)
    except Exception as problem:  # noqa: BLE001 - any error of a driver or a kernel is a result
        return f"refused: {type(problem).__name__}: {' '.join(str(problem).split())}"[:160]


def _measured(dtype: str, device: str) -> float:
    import torch
    from bitrank_trainer import DTYPES

    side = _SIDE if device == "cpu" else _ACCELERATOR_SIDE
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(device, DTYPES[dtype]) for _ in range(2))
    (left @ right).sum().item()
    started, count, spent = time.perf_counter(), 0, 0.0
    while spent < _SECONDS:
        product = left @ right
        # An accelerator is synchronized only once per 32 products.
        for _ in range(0 if device == "cpu" else 31):
            product = left @ right
        product.sum().item()
        count += 1 if device == "cpu" else 32
        spent = time.perf_counter() - started
    return count * 2 * side**3 / spent / 1e9
