"""Initial values of adapters by name, and ranks that a start chooses from data of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from bitrank_adapters import (
    ActivationStart,
    AdapterStart,
    CordaStart,
    GradientStart,
    GradientStep,
    PrincipalStart,
    ResidualStart,
    ranks_by_importance,
    ranks_by_variance,
)
from bitrank_quant import block_matrices
from torch import Tensor, nn

from bitrank.process.compute import scale_of
from bitrank.run.measure_in_subprocess import call_in_subprocess, measure_in_subprocess
from bitrank.run.quantizers import ROUNDING, stored_moments
from bitrank.sensitivity.measure import is_measured, measure
from bitrank.sensitivity.start_data import StartData, gather_start_data, start_data_place
from bitrank.spec.run_spec import RunSpec

Ranks = dict[str, int]
Shapes = Mapping[str, tuple[int, int]]
Weights = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Start:
    """How adapters of given ranks start: ``make`` takes a spec and ranks.

    ``allocate`` replaces the ranks of a rank rule first; it takes the spec, these ranks and the shapes (out,
    in) of the matrices.
    """

    make: Callable[[RunSpec, Ranks], AdapterStart]
    allocate: Callable[[RunSpec, Ranks, Shapes], Ranks] = lambda spec, ranks, shapes: ranks


def choose_init(spec: RunSpec, ranks: Ranks) -> AdapterStart:
    """Return the initialization that ``spec.init`` names; the default changes no matrix and no adapter."""
    return STARTS[spec.init].make(spec, ranks)


def allocated_ranks(spec: RunSpec, ranks: Ranks, model: nn.Module) -> Ranks:
    """The ranks of a run on ``model``: ``ranks`` of its rank rule, or those that the initialization chooses
    from data, whose adapters have at most as many numbers.
    """
    return STARTS[spec.init].allocate(spec, ranks, {m.name: m.shape for m in block_matrices(model)})


def _zero(spec: RunSpec, ranks: Ranks) -> AdapterStart:
    return ResidualStart({})


def _residual(spec: RunSpec, ranks: Ranks) -> AdapterStart:
    return ResidualStart(ranks, rounds=spec.init_rounds)


def _fisher_residual(spec: RunSpec, ranks: Ranks) -> AdapterStart:
    return ResidualStart(ranks, rounds=spec.init_rounds, weights=fisher_weights(spec))


def _input_residual(spec: RunSpec, ranks: Ranks) -> AdapterStart:
    return ResidualStart(ranks, rounds=spec.init_rounds, inputs=second_moments(spec))


def _principal(spec: RunSpec, ranks: Ranks) -> AdapterStart:
    return PrincipalStart(ranks)


def _output_directions(spec: RunSpec, ranks: Ranks) -> AdapterStart:
    return CordaStart(ranks, second_moments(spec))


def _gradient_directions(spec: RunSpec, ranks: Ranks) -> AdapterStart:
    return GradientStart(ranks, start_data(spec).gradient, scale_of(spec))


def _gradient_step(spec: RunSpec, ranks: Ranks) -> AdapterStart:
    return GradientStep(ranks, start_data(spec).gradient)


def _ranks_by_importance(spec: RunSpec, ranks: Ranks, shapes: Shapes) -> Ranks:
    return ranks_by_importance(start_data(spec).importance, ranks, shapes)


def _input_directions(spec: RunSpec, ranks: Ranks) -> AdapterStart:
    return ActivationStart(ranks, start_data(spec).directions)


def _ranks_by_variance(spec: RunSpec, ranks: Ranks, shapes: Shapes) -> Ranks:
    data = start_data(spec)
    return ranks_by_variance({name: data.shares(name) for name in ranks}, ranks, shapes)


# The keys are those of bitrank.spec.inits, which the command line reads without importing torch.
STARTS: dict[str, Start] = {
    "default": Start(_zero),
    "loftq": Start(_residual),
    "lq-lora": Start(_fisher_residual),
    "pissa": Start(_principal),
    "qera": Start(_input_residual),
    "corda": Start(_output_directions),
    "lora-ga": Start(_gradient_directions),
    "eva": Start(_input_directions, _ranks_by_variance),
    "gora": Start(_gradient_step, _ranks_by_importance),
}


def start_data(spec: RunSpec) -> StartData:
    """Gradients and principal components for the model and task of ``spec``, gathered if the cache lacks
    them.
    """
    return StartData(measure_in_subprocess(gather_start_data, start_data_place(spec), spec))


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
    of the run does not include it. The weights are of the unquantized model: where no plan has measured with
    the run's quantizer, rounding is measured, the fastest one.
    """
    if not is_measured(spec):
        spec = replace(spec, quantizer=ROUNDING)
    if is_measured(spec):
        return {name: (moments.row_O, moments.column_I) for name, moments in measure(spec).moments.items()}
    arrays = call_in_subprocess(_measured, spec)
    return {
        name: (torch.from_numpy(row_O), torch.from_numpy(column_I))
        for name, (row_O, column_I) in arrays.items()
    }


def _measured(spec: RunSpec) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        name: (moments.row_O.numpy(), moments.column_I.numpy())
        for name, moments in measure(spec).moments.items()
    }
