"""Errors of every matrix in every format: stored bytes, weight errors, repairable part, and true added loss.

With Δ = W − q(W), and ``row`` and ``column`` from :mod:`~bitrank_quant.sensitivity.moments`:

plain       Σ Δ²
input       Σ column_i Δ_oi²: squared error of the layer's output (the objective of GPTQ and AWQ)
fisher      ½ Σ row_o column_i Δ_oi²: predicted added loss in nats
tail_R      ½ Σ_{k>r} σ_k² for r = 0, 1, 2 …: the predicted loss left after the best rank-r correction,
            σ being the singular values of √row ∘ Δ ∘ √column
added       loss with this matrix alone quantized minus the original loss, in nats, on the calibration data:
            the reference for the predictions
divergence  divergence of the predictions with this matrix alone quantized, in nats: ``added`` without the
            noise of the observed labels (see :mod:`~bitrank_quant.sensitivity.divergence`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitrank_quant.apply import swap_weights, with_weight
from bitrank_quant.backends.reference import QuantWeight
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.float import Float
from bitrank_quant.matrices import WeightMatrix
from bitrank_quant.sensitivity.moments import SPECTRUM, Moments, compute_dtype, singular_values, weight_of
from bitrank_quant.sensitivity.replay import Replay

Modules = Mapping[str, nn.Module]


@dataclass(frozen=True)
class FormatErrors:
    """Errors of one matrix in one format; fields as in the module's description.

    ``tail_R`` has at most :data:`~bitrank_quant.sensitivity.moments.SPECTRUM` + 1 values, and none for
    embeddings, which get no adapter. ``added`` and ``divergence`` are None if they were not measured.
    """

    nbytes: int
    plain: float
    input: float
    fisher: float
    tail_R: Tensor
    added: float | None
    divergence: float | None


def modules_of(model: nn.Module, matrix: str, matrices: Iterable[WeightMatrix]) -> dict[str, nn.Module]:
    """Modules that use the weight ``matrix``: its own, and those tied to it."""
    return {m.name: model.get_submodule(m.name) for m in matrices if matrix in (m.name, m.tied_to)}


def measure_errors(
    replay: Replay,
    matrices: Sequence[WeightMatrix],
    formats: Sequence[Format],
    moments: Mapping[str, Moments],
    measured: Callable[[Format], bool] = lambda fmt: fmt.bits < 8,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, FormatErrors]]:
    """Measure every matrix that is not tied to another one: {matrix: {format text: errors}}.

    Floating-point formats count as exact, since the model is in one. ``measured`` selects the formats for
    which added loss and divergence are measured: by default those below 8 bits, whose added loss exceeds the
    rounding noise of a 16-bit forward pass. ``on_progress`` is called with the name of each matrix.
    """
    done: dict[str, dict[str, FormatErrors]] = {}
    for matrix in (m for m in matrices if m.tied_to is None):
        on_progress(matrix.name)
        modules = modules_of(replay.model, matrix.name, matrices)
        done[matrix.name] = {
            str(fmt): _one(replay, matrix, modules, fmt, moments[matrix.name], measured(fmt))
            for fmt in formats
        }
    return done


def _one(
    replay: Replay, matrix: WeightMatrix, modules: Modules, fmt: Format, moments: Moments, measured: bool
) -> FormatErrors:
    if isinstance(fmt, Float):
        tail_R = torch.zeros(0 if matrix.role == "embedding" else min(SPECTRUM, *matrix.shape) + 1)
        return FormatErrors(fmt.nbytes(matrix.shape), 0.0, 0.0, 0.0, tail_R, 0.0, 0.0)
    weight_OI = weight_of(modules[matrix.name])
    stored = QuantWeight(weight_OI, fmt, compute_dtype(modules[matrix.name]))
    added, divergence = _measured(replay, matrix, modules, stored) if measured else (None, None)
    plain, by_input, fisher = _weight_errors(weight_OI, stored, moments)
    return FormatErrors(
        nbytes=fmt.nbytes(matrix.shape),
        plain=plain,
        input=by_input,
        fisher=fisher,
        tail_R=torch.zeros(0)
        if matrix.role == "embedding"
        else _tail(stored.decode().float().sub_(weight_OI), moments),
        added=added,
        divergence=divergence,
    )


def _weight_errors(weight_OI: Tensor, stored: QuantWeight, moments: Moments) -> tuple[float, float, float]:
    """Plain, input and Fisher error, computed a few rows at a time.

    An embedding may be half of a model, so it is never converted to fp32 as a whole.
    """
    plain = by_input = fisher = 0.0
    for part in stored.parts(torch.float32):
        square_PI = stored.decode_part(part, stored.compute_dtype).float().sub_(weight_OI[part]).square_()
        plain += float(square_PI.sum())
        by_input += float((square_PI @ moments.column_I.to(square_PI)).sum())
        for row_O, column_I in moments.weights():
            fisher += 0.5 * float(row_O[part].to(square_PI) @ square_PI @ column_I.to(square_PI))
    return plain, by_input, fisher


def _tail(delta_OI: Tensor, moments: Moments) -> Tensor:
    weighted_OI = moments.row_O.to(delta_OI).sqrt()[:, None] * delta_OI * moments.column_I.to(delta_OI).sqrt()
    energy_K = singular_values(weighted_OI, torch.float32).square()
    total = energy_K.sum()
    tail = 0.5 * torch.cat([total[None], total - energy_K.cumsum(0)]).clamp_min(0)
    return tail[: SPECTRUM + 1].float().cpu()


def _measured(
    replay: Replay, matrix: WeightMatrix, modules: Modules, stored: QuantWeight
) -> tuple[float, float]:
    """Added loss and divergence when this matrix alone is ``stored``; the model is restored afterwards."""
    try:
        swap_weights(replay.model, with_weight(stored, modules))
        loss, divergence = replay.evaluate_from(
            replay.block_of(matrix.name), first=matrix.role == "embedding"
        )
        return loss - replay.base, divergence
    finally:
        swap_weights(replay.model, modules)
