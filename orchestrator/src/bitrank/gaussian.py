"""What is known of quantization and of low rank on Gaussian matrices: the ground that a plan stands on when nothing is measured."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from bitrank_quant import Float, parse_format

_WEIGHTS = 2**20  # of the matrix that formats are tried on
_GRID = 4097


@cache
def relative_error(text: str, width: int = 1024) -> float:
    """‖W − q(W)‖ / ‖W‖ of the format ``text`` on a standard normal matrix with rows of ``width``; 0 for floating-point formats, which a
    model is already in.

    At 1,024: int8 0.0077, NF4 0.092, int4 in groups of 64 0.090, int3 0.19, int2 0.45. Only int8 changes with the width: its one scale a
    row follows the row's largest weight. Computed here, once, from a fixed seed.
    """
    fmt = parse_format(text)
    if isinstance(fmt, Float):
        return 0.0
    shape = (max(1, _WEIGHTS // width), width)
    weight_OI = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    stored_OI = fmt.decode(fmt.encode(weight_OI), shape, torch.float32)
    return float((weight_OI - stored_OI).norm() / weight_OI.norm())


def tail_energy(shape: tuple[int, int], rank: int) -> float:
    """The share of ‖G‖² that the best approximation of ``rank`` leaves, for a large random matrix G with independent entries.

    With β = short / long side, the squared singular values follow the Marchenko–Pastur law (1967) on (1 ± √β)². Put
    λ = 1 + β + 2√β cos θ: the singular values above the one at θ hold (θ − sin θ cos θ) / π of the energy, and their share of the count
    is ∫ 2 sin² t / (π λ(t)) dt from 0 to θ. Quantization errors are close to such a matrix; weighted by what the model feels they are
    not, so this is the least that rank repairs. Raises ``ValueError`` for a rank outside 0 … the short side.
    """
    short, long = sorted(shape)
    if not 0 <= rank <= short:
        raise ValueError(f"rank {rank} does not fit a matrix of shape {shape}: expected 0 to {short}")
    theta_G, count_G = _counted(short / long)
    theta = float(np.interp(rank / short, count_G, theta_G))
    return 1.0 - (theta - float(np.sin(theta) * np.cos(theta))) / np.pi


@cache
def _counted(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """A grid of θ from 0 to π, and the share of singular values above each."""
    theta_G = np.linspace(0.0, np.pi, _GRID)
    edge_G = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(theta_G)
    # A square matrix has λ = 0 at θ = π, where sin² / λ tends to 2.
    density_G = 2 / np.pi * np.divide(np.sin(theta_G) ** 2, edge_G, out=np.full(_GRID, 2.0), where=edge_G > 1e-12)
    parts_G = (density_G[1:] + density_G[:-1]) / 2 * np.diff(theta_G)
    count_G = np.concatenate([[0.0], np.cumsum(parts_G)])
    return theta_G, count_G / count_G[-1]
