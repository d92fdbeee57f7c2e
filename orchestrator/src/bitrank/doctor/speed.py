"""How fast a device multiplies in each dtype, measured; a dtype that it refuses says why."""

from __future__ import annotations

import time

_SIDE, _ACCELERATOR_SIDE = (
    1024,
    4096,
)  # an accelerator is asked for more than it can do before it is asked again
_SECONDS = 0.5


def gflops(dtype: str, device: str) -> float | str:
    """GFLOP/s of square products over half a second (at least one product, or 32 on an accelerator), or the reason why there are none."""
    try:
        return round(_measured(dtype, device), 1)
    except Exception as problem:  # noqa: BLE001 - whatever a driver or a kernel raises is the answer here
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
        for _ in range(
            0 if device == "cpu" else 31
        ):  # an accelerator is asked for an answer once in 32 products
            product = left @ right
        product.sum().item()
        count += 1 if device == "cpu" else 32
        spent = time.perf_counter() - started
    return count * 2 * side**3 / spent / 1e9
