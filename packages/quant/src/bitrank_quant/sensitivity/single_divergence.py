"""The measured added loss and divergence of each matrix alone in each format: the reference for predictions.

It takes one forward pass, from the matrix's block on, for every matrix and format, so planning does without
it; ``benchmarks/prediction.py`` compares the predictions with it.

added       loss with this matrix alone quantized minus the original loss, in nats
divergence  divergence of the predictions, in nats: ``added`` without the noise of the observed labels
            (see :mod:`~bitrank_quant.sensitivity.divergence`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from bitrank_quant.apply import swap_weights, with_weight
from bitrank_quant.backends.reference import QuantWeight
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.float import Float
from bitrank_quant.matrices import WeightMatrix
from bitrank_quant.quantizers import InputMoments
from bitrank_quant.sensitivity.format_errors import stored_in
from bitrank_quant.sensitivity.replay import Replay

Modules = Mapping[str, nn.Module]
Measured = dict[str, dict[str, tuple[float, float]]]


def modules_of(model: nn.Module, matrix: str, matrices: Iterable[WeightMatrix]) -> dict[str, nn.Module]:
    """Modules that use the weight ``matrix``: its own, and those tied to it."""
    return {m.name: model.get_submodule(m.name) for m in matrices if matrix in (m.name, m.tied_to)}


def measure_divergences(
    replay: Replay,
    matrices: Sequence[WeightMatrix],
    formats: Sequence[Format],
    quantizer: str = "rtn",
    inputs: Mapping[str, InputMoments] | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Measured:
    """{matrix: {format text: (added, divergence)}} of every matrix that is not tied to another one.

    ``inputs`` are the second moments for the quantizer. Floating-point formats count as exact. The model is
    unchanged afterwards.
    """
    found: Measured = {}
    for matrix in (m for m in matrices if m.tied_to is None):
        on_progress(matrix.name)
        modules = modules_of(replay.model, matrix.name, matrices)
        given = (inputs or {}).get(matrix.name)
        found[matrix.name] = {}
        for fmt in formats:
            pair = (0.0, 0.0)
            if not isinstance(fmt, Float):
                stored = stored_in(modules[matrix.name], fmt, quantizer, given)
                pair = _measured(replay, matrix, modules, stored)
            found[matrix.name][str(fmt)] = pair
    return found


def _measured(
    replay: Replay, matrix: WeightMatrix, modules: Modules, stored: QuantWeight
) -> tuple[float, float]:
    """Added loss and divergence when this matrix alone is ``stored``; the model is restored afterwards."""
    try:
        swap_weights(replay.model, with_weight(stored, modules))
        block = replay.block_of(matrix.name)
        # Of the matrices outside of blocks heads alone are known to run after them.
        loss, divergence = replay.evaluate_from(block, first=block is None and matrix.role != "head")
        return loss - replay.base, divergence
    finally:
        swap_weights(replay.model, modules)
