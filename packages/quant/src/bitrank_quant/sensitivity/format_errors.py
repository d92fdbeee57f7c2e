"""Errors of every matrix in every format, from one sweep: stored bytes, weight errors, added loss, and the
part of it that rank can repair.

With Δ = Ŵ − W, Ŵ by the quantizer, and ``row`` and ``column`` from :mod:`~bitrank_quant.sensitivity.moments`:

plain       Σ Δ²
input       Σ column_i Δ_oi²: squared error of the layer's output, inputs taken as uncorrelated
fisher      ½ Σ row_o column_i Δ_oi²: added loss in nats by the diagonal of the Kronecker-factored Fisher
output      added loss in nats by output errors at single positions (see
            :mod:`~bitrank_quant.sensitivity.samples`)
tail_R      ½ Σ_{k>r} σ_k² for r = 0, 1, 2 …: the loss left after the best rank-r correction, by inputs with
            all their correlations (see :func:`~bitrank_quant.sensitivity.spectra.repair_tail`)

All are computed while a block's inputs and gradients are in memory, so the work grows with the number of
formats and no forward pass is needed for any of them. The measured divergence of single matrices, which they
predict, is :func:`~bitrank_quant.sensitivity.single_divergence.measure_divergences`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitrank_quant.backends.reference import QuantWeight
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format
from bitrank_quant.formats.float import Float
from bitrank_quant.matrices import WeightMatrix
from bitrank_quant.quantizers import InputMoments, find_quantizer, quantize
from bitrank_quant.sensitivity.moments import Moments, compute_dtype, measure_moments, weight_of
from bitrank_quant.sensitivity.replay import Replay
from bitrank_quant.sensitivity.samples import LayerSample, LookupSample
from bitrank_quant.sensitivity.side_by_side import side_by_side
from bitrank_quant.sensitivity.spectra import SPECTRUM, repair_tail


@dataclass(frozen=True)
class FormatErrors:
    """Errors of one matrix in one format; fields as in the module's description.

    ``tail_R`` has at most :data:`~bitrank_quant.sensitivity.spectra.SPECTRUM` + 1 values, and none for
    embeddings, which get no adapter.
    """

    nbytes: int
    plain: float
    input: float
    fisher: float
    output: float
    tail_R: Tensor


def measure_sensitivities(
    replay: Replay,
    matrices: Sequence[WeightMatrix],
    formats: Sequence[Format],
    quantizer: str = "rtn",
    on_progress: Callable[[str], None] = lambda _: None,
    workers: int = 1,
) -> tuple[dict[str, Moments], dict[str, dict[str, FormatErrors]]]:
    """Moments by matrix, and errors by matrix and format, of every matrix that is not tied to another one.

    ``quantizer`` is a name of :data:`~bitrank_quant.quantizers.QUANTIZERS`; linear layers give it the second
    moments of their inputs. Floating-point formats count as exact, since the model is in one. ``workers``
    formats of a matrix are measured at the same time (:func:`side_by_side`). Raises as
    :func:`~bitrank_quant.sensitivity.moments.measure_moments` does, and :class:`QuantError` for an unknown
    quantizer.
    """
    find_quantizer(quantizer)
    by_name = {matrix.name: matrix for matrix in matrices}
    errors: dict[str, dict[str, FormatErrors]] = {}

    def on_matrix(name: str, moments: Moments, sample: LayerSample | LookupSample) -> None:
        module, matrix = replay.model.get_submodule(name), by_name[name]
        try:
            made = side_by_side(
                lambda fmt: _errors(matrix, module, fmt, quantizer, moments, sample), formats, workers
            )
        except QuantError as error:
            raise QuantError(f"{name}: {error}") from None
        errors[name] = dict(zip(map(str, formats), made, strict=True))

    moments = measure_moments(replay, matrices, on_progress, on_matrix)
    return moments, {name: errors[name] for name in moments}


def stored_in(
    module: nn.Module, fmt: Format, quantizer: str = "rtn", moments: InputMoments | None = None
) -> QuantWeight:
    """The weight of ``module`` in ``fmt``, for the dtype that the module computes in."""
    weight_OI = weight_of(module)
    shape = (weight_OI.shape[0], weight_OI.shape[1])
    return QuantWeight.of(quantize(weight_OI, fmt, quantizer, moments), fmt, shape, compute_dtype(module))


def _errors(
    matrix: WeightMatrix,
    module: nn.Module,
    fmt: Format,
    quantizer: str,
    moments: Moments,
    sample: LayerSample | LookupSample,
) -> FormatErrors:
    nbytes = fmt.nbytes(matrix.shape)
    if isinstance(fmt, Float):
        ranks = 0 if isinstance(sample, LookupSample) else min(SPECTRUM, *matrix.shape) + 1
        return FormatErrors(nbytes, 0.0, 0.0, 0.0, 0.0, torch.zeros(ranks))
    weight_OI = weight_of(module)
    if isinstance(sample, LookupSample):
        stored = stored_in(module, fmt, quantizer, moments.quantizer_inputs())
        plain, by_input, table, *head = _weighted_squares(weight_OI, stored, moments)
        looked_up = stored.decode_rows(sample.ids_N).float() - weight_OI[sample.ids_N]
        # The gradients of a tied head span the vocabulary and are not kept, so the error at its output is
        # replaced by its Fisher term.
        output = sample.output_error(looked_up) + 0.5 * sum(head)
        return FormatErrors(nbytes, plain, by_input, 0.5 * sum((table, *head)), output, torch.zeros(0))
    stored = stored_in(module, fmt, quantizer, sample.quantizer_inputs)
    plain, by_input, squares = _weighted_squares(weight_OI, stored, moments)
    delta_OI = stored.decode().float().sub_(weight_OI)
    return FormatErrors(
        nbytes,
        plain,
        by_input,
        fisher=0.5 * squares,
        output=sample.output_error(delta_OI),
        tail_R=repair_tail(delta_OI, moments.row_O, sample.inputs),
    )


def _weighted_squares(weight_OI: Tensor, stored: QuantWeight, moments: Moments) -> list[float]:
    """Σ row_o column_i Δ_oi² for rows and columns of ones, rows of ones and the moments' column, and each
    pair of the moments. Computed a few rows at a time: an embedding may be half of a model, so it is never
    converted to fp32 as a whole.
    """
    ones_O, ones_I = torch.ones(len(moments.row_O)), torch.ones(len(moments.column_I))
    pairs = [(ones_O, ones_I), (ones_O, moments.column_I), *moments.weights()]
    totals = [0.0 for _ in pairs]
    for part in stored.parts(torch.float32):
        square_PI = stored.decode_part(part, stored.compute_dtype).float().sub_(weight_OI[part]).square_()
        for number, (row_O, column_I) in enumerate(pairs):
            totals[number] += float(row_O[part].to(square_PI) @ square_PI @ column_I.to(square_PI))
    return totals
