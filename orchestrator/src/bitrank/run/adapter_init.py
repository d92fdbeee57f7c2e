"""Initial values of adapters: zero, the quantization residual (LoftQ, LQ-LoRA, QERA), or singular triplets
(PiSSA).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from bitrank_adapters import AdapterStart, PrincipalStart, ResidualStart
from torch import Tensor

from bitrank.process.lifetime import exit_with_parent
from bitrank.run.quantizers import stored_moments
from bitrank.sensitivity.measure import is_measured, measure
from bitrank.spec.run_spec import RunSpec

Weights = dict[str, tuple[Tensor, Tensor]]


def choose_init(spec: RunSpec, ranks: dict[str, int]) -> AdapterStart:
    """Return the initialization that ``spec.init`` names; the default changes no matrix and no adapter."""
    return STARTS[spec.init](spec, ranks)


def _zero(spec: RunSpec, ranks: dict[str, int]) -> AdapterStart:
    return ResidualStart({})


def _residual(spec: RunSpec, ranks: dict[str, int]) -> AdapterStart:
    return ResidualStart(ranks, rounds=spec.init_rounds)


def _fisher_residual(spec: RunSpec, ranks: dict[str, int]) -> AdapterStart:
    return ResidualStart(ranks, rounds=spec.init_rounds, weights=fisher_weights(spec))


def _input_residual(spec: RunSpec, ranks: dict[str, int]) -> AdapterStart:
    return ResidualStart(ranks, rounds=spec.init_rounds, inputs=second_moments(spec))


def _principal(spec: RunSpec, ranks: dict[str, int]) -> AdapterStart:
    return PrincipalStart(ranks)


# By the names in bitrank.spec.inits, which needs no torch.
STARTS: dict[str, Callable[[RunSpec, dict[str, int]], AdapterStart]] = {
    "default": _zero,
    "loftq": _residual,
    "lq-lora": _fisher_residual,
    "pissa": _principal,
    "qera": _input_residual,
}


def second_moments(spec: RunSpec) -> Callable[[str], Tensor]:
    """A function from a matrix's name to E[x xᵀ] of its inputs (in, in), from the run's training data.

    Gathered once per model and task and cached, for all seeds. Raises :class:`~bitrank.errors.UserError` for
    a matrix that the calibration data do not reach.
    """
    stored = stored_moments(spec)

    def of(name: str) -> Tensor:
        second_II = stored.of(name, 0).input_II
        assert second_II is not None, f"{name} is looked up and has no inputs"
        return second_II

    return of


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
