"""Seconds in which data of the run's training were gathered for the start and the quantizer of an arm.

A cached entry reports the seconds that it took, so an arm costs the same whichever arm was first. Entries are
kept by the code that gathers them, so none is read that was made before seconds were recorded.
"""

from __future__ import annotations

from collections.abc import Callable

from bitrank_quant import find_quantizer

from bitrank.sensitivity.input_moments import StoredMoments, gather
from bitrank.sensitivity.measure import measure
from bitrank.sensitivity.start_data import StartData, gather_start_data
from bitrank.spec.inits import GRADIENTS, INITS, INPUTS, SENSITIVITIES
from bitrank.spec.run_spec import RunSpec

_SECONDS: dict[str, Callable[[RunSpec], float]] = {
    SENSITIVITIES: lambda spec: measure(spec).seconds,
    INPUTS: lambda spec: StoredMoments(gather(spec)).seconds,
    GRADIENTS: lambda spec: StartData(gather_start_data(spec)).seconds,
}


def data_of(init: str, quantizer: str) -> set[str]:
    """What the start ``init`` and the ``quantizer`` read of the run's training data."""
    start, codes = INITS[init].reads, find_quantizer(quantizer).uses_moments
    return ({start} if start else set()) | ({INPUTS} if codes else set())


def gathering_seconds(spec: RunSpec, needed: set[str]) -> float:
    """The seconds of gathering what is ``needed`` for the model and task of ``spec``, now or before."""
    return sum(_SECONDS[data](spec) for data in sorted(needed))
