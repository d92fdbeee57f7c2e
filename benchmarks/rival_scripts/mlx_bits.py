"""Bits by mlx-lm's `dynamic_quant`: matrices above a threshold of sensitivity get more bits.

Its sensitivities compare two widths, and a model has these two. Each budget is between its widths, of which
the lower one alone would be smaller, and the higher one alone larger. The threshold is the one at which the
budget is reached; mlx-lm finds it by bisection.
"""

from __future__ import annotations

import math

import mlx.core as mx
from exchange import GROUP, Request, given_folder, read_request, write_assignments
from mlx_lm.quant.dynamic_quant import estimate_sensitivities
from mlx_lm.utils import load

BATCH = 4


def main() -> None:
    """Write the assignment of every budget."""
    folder = given_folder()
    request = read_request(folder)
    model, _ = load(request.model)
    model.set_dtype(mx.float32)  # 16-bit products are slow on a CPU
    length = max(len(window) for window in request.windows)
    data = mx.array([window for window in request.windows if len(window) == length])
    assignments, pairs = {}, []
    for budget in request.budgets:
        low, high = widths(request.bits_of(budget))
        found = dict(estimate_sensitivities(model, data, low, GROUP, high, GROUP, batch_size=BATCH))
        assignments[budget] = above_threshold(request, budget, found, (low, high))
        pairs.append(f"{low} and {high} bits at {budget}")
    settings = f"dynamic_quant, {len(data)} windows of {length} tokens, {', '.join(pairs)}"
    write_assignments(folder, ["mlx-lm", "mlx"], settings, assignments)


def widths(bits: float) -> tuple[int, int]:
    """The whole numbers below and above ``bits``, both different from it."""
    return math.ceil(bits - 1e-3) - 1, math.floor(bits + 1e-3) + 1


def above_threshold(
    request: Request, budget: str, sensitivities: dict[str, float], pair: tuple[int, int]
) -> dict[str, int]:
    """The higher width for the most sensitive matrices, as many as fit ``budget``."""
    low, high = pair
    bits = dict.fromkeys(request.shapes, low)
    for name in sorted(request.shapes, key=lambda name: -sensitivities[name]):
        if request.nbytes(bits | {name: high}) > request.budgets[budget]:
            break
        bits[name] = high
    return bits


if __name__ == "__main__":
    main()
