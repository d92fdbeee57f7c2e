"""Initial values of adapters: zero, the quantization residual (LoftQ, LQ-LoRA), singular triplets (PiSSA)."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from bitrank_adapters import AdapterStart, PrincipalStart, ResidualStart
from torch import Tensor

from bitrank.process.lifetime import exit_with_parent
from bitrank.sensitivity.measure import is_measured, measure
from bitrank.spec.inits import INITS
from bitrank.spec.run_spec import RunSpec

Weights = dict[str, tuple[Tensor, Tensor]]


def choose_init(spec: RunSpec, ranks: dict[str, int]) -> AdapterStart:
    """Return the initialization that ``spec.init`` names; the default changes no matrix and no adapter."""
    init = INITS[spec.init]
    if init.principal:
        return PrincipalStart(ranks)
    if not init.residual:
        return ResidualStart({})
    weights = fisher_weights(spec) if init.weighted else None
    return ResidualStart(ranks, rounds=spec.init_rounds, weights=weights)


def fisher_weights(spec: RunSpec) -> Weights:
    """{matrix: (row_O, column_I)} for the model and task of ``spec``, measured once and cached.

    The measurement loads the whole model in 16 bits. It runs in a separate process, so that the peak memory
    of the run does not include it.
    """
    if is_measured(spec):
        return {name: (moments.row_O, moments.column_I) for name, moments in measure(spec).moments.items()}
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=exit_with_parent) as pool:
        arrays = pool.submit(_measured, spec).result()
    return {
        name: (torch.from_numpy(row_O), torch.from_numpy(column_I))
        for name, (row_O, column_I) in arrays.items()
    }


def _measured(spec: RunSpec) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        name: (moments.row_O.numpy(), moments.column_I.numpy())
        for name, moments in measure(spec).moments.items()
    }
